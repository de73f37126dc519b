"""An adapter in a package of its own: after `pip install .` it is `--adapter chat` of every evaluation of texts."""

from dataclasses import replace

from namm_transfer.adapters.causal_lm import CausalLMAdapter, EncodedPrompt, Prompt


class ChatAdapter(CausalLMAdapter):
    """Asks an instruction-tuned model in its own chat template, where the usual adapter gives it the bare prompt."""

    def encode(self, sample: Prompt) -> EncodedPrompt:
        """Let the user say the prompt; the answer begins the model's turn."""
        turns = [{"role": "user", "content": sample.text}]
        text = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, tokenize=False)
        return super().encode(replace(sample, text=text, answer=sample.answer.strip()))
