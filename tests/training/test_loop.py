"""The optimisation loop: its gradients and rates, kill -9 and resume, one process and two, and what it refuses."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from safetensors.torch import load_file
from torch import nn

from namm_transfer import NammTransferError
from namm_transfer.training.loop import Loop, check_identity, warm_up_cosine

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1"}


def make(path: Path | None = None, steps: int = 12, seed: int = 0, pause: float = 0.0, **options) -> Loop:
    """A regression on data drawn for each step and part; the second layer is never used."""
    torch.manual_seed(seed)
    module = nn.ModuleDict({"used": nn.Linear(4, 3), "unused": nn.Linear(2, 2)})

    def loss(step: int, part: int) -> tuple[torch.Tensor, list[float]]:
        time.sleep(pause)
        generator = torch.Generator().manual_seed(1000 * step + part)
        x = torch.randn(8, 4, generator=generator)
        error = (module["used"](x) - x[:, :3]).square().mean()
        return error, [float(part)]

    optimizer = torch.optim.AdamW(module.parameters(), lr=0.05, weight_decay=0.1)
    given = {"schedule": warm_up_cosine(steps, 3, 0.1), "clip": 0.5, "parts": 2, "save_every": 2, **options}
    accelerator = given.pop("accelerator", None) or Accelerator(cpu=True)
    identity = {"seed": seed, "data": "abc"}
    return Loop(
        module,
        optimizer,
        loss,
        steps,
        accelerator=accelerator,
        path=path,
        identity=identity,
        metrics=("part",),
        **given,
    )


def weights(loop: Loop) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in loop.module.parameters()])


def test_a_step_is_the_mean_of_the_clipped_gradients_of_its_parts():
    loop = make(steps=1, clip=0.1)
    expected = []
    for part in range(2):
        gradients = torch.autograd.grad(loop.loss(0, part)[0], list(loop.module["used"].parameters()))
        flat = torch.cat([g.flatten() for g in gradients])
        assert flat.norm() > 0.1
        expected.append(0.1 * flat / flat.norm())
    loop.run()
    found = torch.cat([p.grad.flatten() for p in loop.module["used"].parameters()])
    torch.testing.assert_close(found, torch.stack(expected).mean(0), rtol=1e-4, atol=1e-6)
    assert loop.log.shape == (1, 2)
    assert loop.log[0, 1] == 0.5


def test_it_learns_and_leaves_alone_what_has_no_gradient():
    loop = make(steps=60)
    before = loop.module["unused"].weight.clone()
    loop.run()
    assert loop.log[-5:, 0].mean() < loop.log[:5, 0].mean() / 2
    assert torch.equal(loop.module["unused"].weight, before), "weight decay without a gradient"


def test_the_schedule_is_followed_across_a_stop(tmp_path):
    rates = []
    for steps in (4, 12):
        loop = make(tmp_path / "c.safetensors", steps=steps, schedule=warm_up_cosine(12, 3, 0.1))
        loop.optimizer.register_step_pre_hook(lambda optimizer, *_: rates.append(optimizer.param_groups[0]["lr"]))
        loop.run()
    assert rates == pytest.approx([0.05 * warm_up_cosine(12, 3, 0.1)(step) for step in range(12)])
    assert rates[0] == pytest.approx(0.05 / 3)
    assert min(rates[3:]) == rates[-1] < 0.01


def test_warm_up_and_cosine():
    share = warm_up_cosine(100, 10, 0.05)
    assert share(0) == pytest.approx(0.1)
    assert share(100) == pytest.approx(0.05)
    assert share(50) == pytest.approx(0.525)


def test_killed_and_resumed_is_the_same(tmp_path):
    whole = make(tmp_path / "whole.safetensors")
    whole.run()
    path = tmp_path / "killed.safetensors"
    tests = Path(__file__).parent
    code = f"import sys; sys.path.insert(0, {str(tests)!r}); import test_loop, pathlib; "
    code += f"test_loop.make(pathlib.Path({str(path)!r}), pause=0.1).run()"
    process = subprocess.Popen([sys.executable, "-c", code], env=ENVIRONMENT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 120
    while not path.with_suffix(".jsonl").exists():
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    resumed = make(path)
    assert resumed.resumed
    assert 0 < resumed.step < 12, "killed too late to be resumed"
    resumed.run()
    assert torch.equal(weights(resumed), weights(whole))
    assert torch.equal(resumed.log, whole.log)
    first, second = (load_file(tmp_path / f"{name}.safetensors") for name in ("whole", "killed"))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[key], second[key]) for key in first if key != "seconds")
    lines = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == list(range(1, 13))
    assert lines[3]["loss"] == pytest.approx(float(whole.log[3, 0]))
    assert all(line["seconds"] > 0 for line in lines)


def test_two_processes_are_one(tmp_path):
    whole = make()
    whole.run()
    code = (
        "import sys, pathlib, torch\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "import test_loop\n"
        "loop = test_loop.make(pathlib.Path(sys.argv[1]))\n"
        "assert loop.accelerator.num_processes == 2\n"
        "loop.run()\n"
    )
    script = tmp_path / "two.py"
    script.write_text(code)
    command = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    command += ["--num_cpu_threads_per_process", "1", "--main_process_port", "0"]
    command += [str(script), str(tmp_path / "two.safetensors")]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    again = make(tmp_path / "two.safetensors")
    assert torch.equal(weights(again), weights(whole))
    assert torch.equal(again.log, whole.log)


def test_another_configuration_is_refused_with_both_values(tmp_path):
    make(tmp_path / "c.safetensors").run()
    with pytest.raises(NammTransferError, match=r"made with seed=0, this run has seed=1"):
        make(tmp_path / "c.safetensors", seed=1)


def test_each_difference_is_named():
    with pytest.raises(NammTransferError, match=r"a=1, this run has a=2.*b=\[1\], this run has b='nothing'") as caught:
        check_identity(Path("x"), {"a": 1, "b": [1], "c": [2]}, {"a": 2, "c": (2,)})
    assert "c=" not in str(caught.value)


def test_fewer_steps_than_done_are_refused(tmp_path):
    make(tmp_path / "c.safetensors").run()
    with pytest.raises(NammTransferError, match=r"has 12 steps.*steps=5"):
        make(tmp_path / "c.safetensors", steps=5)


@pytest.mark.parametrize("content", [b"nonsense", b""])
def test_a_damaged_checkpoint_is_refused(tmp_path, content):
    path = tmp_path / "c.safetensors"
    path.write_bytes(content)
    with pytest.raises(NammTransferError, match="no checkpoint of this training"):
        make(path)


def test_a_gradient_that_is_not_finite_stops_the_run():
    loop = make(label="toy")
    loop.module["used"].weight.data.fill_(float("nan"))
    with pytest.raises(NammTransferError, match="toy: the gradient of step 0 is not finite"):
        loop.run()
