"""Ask a question about a video and see which parts of it stayed in the cache.

python examples/video_question.py                                     # a generated film of a minute, the shipped model
python examples/video_question.py FILE QUESTION OPTION OPTION ... --model llava-hf/LLaVA-NeXT-Video-7B-hf
"""

import argparse
import tempfile
from pathlib import Path

from namm_transfer import policies
from namm_transfer.adapters.llava_next_video import LlavaNextVideoAdapter, VideoSample
from namm_transfer.adapters.video import prompts
from namm_transfer.evals.tasks.video.generated import load_generated
from namm_transfer.files import asset

parser = argparse.ArgumentParser()
parser.add_argument("film", nargs="*", help="video file, question, options")
parser.add_argument("--model", default=str(asset("llava-next-video-small")))
arguments = parser.parse_args()

adapter = LlavaNextVideoAdapter.load(arguments.model)
if arguments.film:
    film, text, *options = arguments.film
    samples = [VideoSample(film, prompts.question(text, options), choices=prompts.letters(options), frames=32)]
else:  # the small shipped model answers in words, not letters
    asked = load_generated(1, 64, folder=Path(tempfile.mkdtemp()))[:3]
    samples = [VideoSample(one.video, one.prompt, one.lead, one.choices) for one in asked]
for sample in samples:
    encoded = adapter.encode(sample)
    print(sample.prompt.splitlines()[0])
    for spec in ("full", "namm", "streaming:keep=0.25"):
        cache = adapter.memory(policies.make(spec, update_interval=128))
        answer = sample.choices[adapter.answer(encoded, cache).choice].strip()
        frames = adapter.kept(cache, encoded)["frames"].mean((0, 1))  # share of each frame's tokens
        print(f"  {spec:<20} {answer:<10} {cache.report().kept_share:.0%} held, most of frame {frames.argmax()}")
