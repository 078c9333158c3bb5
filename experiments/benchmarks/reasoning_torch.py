"""RLOO with Hugging Face's sampler in PyTorch: what `reasoning_step` compares with, and no more."""

import pathlib
import tempfile
from typing import Any

from bellmax.agents import networks


class TorchLearner:
    """The policy, its reference and RLOO in PyTorch, with given parameters.

    Attributes:
      policy: Hugging Face's model.

    Args:
      torch: the library.
      transformers: the library.
      config: the network's shape.
      params: of `networks.init`; both models begin with them.
      group_size: completions G of a prompt.
      beta: weight of the divergence from the reference, in the reward.
      learning_rate: of Adam.
    """

    def __init__(
        self,
        torch: Any,
        transformers: Any,
        config: networks.TransformerConfig,
        params: Any,
        *,
        group_size: int,
        beta: float,
        learning_rate: float,
    ):
        self._torch, self._group_size, self._beta = torch, group_size, beta
        transformers.utils.logging.disable_progress_bar()
        with tempfile.TemporaryDirectory() as folder:
            networks.save_pretrained(pathlib.Path(folder), config, params)
            read = transformers.AutoModelForCausalLM.from_pretrained
            self.policy = read(folder, dtype=torch.float32).eval()
            self._reference = read(folder, dtype=torch.float32).eval()
        self._optimizer = torch.optim.Adam(self.policy.parameters(), lr=learning_rate)

    def sample(self, prompts: Any, num_tokens: int) -> Any:
        """Samples G completions of each prompt, at temperature 1 from the whole vocabulary.

        Args:
          prompts: [B, P].
          num_tokens: tokens N of each, none of which ends it.

        Returns:
          Prompts and completions. [B * G, P + N].
        """
        rows = prompts.repeat_interleave(self._group_size, dim=0)
        with self._torch.inference_mode():
            return self.policy.generate(
                rows,
                attention_mask=self._torch.ones_like(rows),
                max_new_tokens=num_tokens,
                min_new_tokens=num_tokens,
                do_sample=True,
                top_k=0,
                pad_token_id=0,
            )

    def _log_probs(self, model: Any, rows: Any, length: int) -> Any:
        # The last token predicts nothing.
        logits = model(rows[:, :-1]).logits[:, length - 1 :]
        targets = rows[:, length:]
        losses = self._torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="none"
        )
        return -losses.reshape(targets.shape).sum(dim=1)

    def update(self, rows: Any, rewards: Any, length: int) -> Any:
        """Takes a step of RLOO.

        Args:
          rows: prompts and completions, groups together. [B * G, P + N].
          rewards: [B * G].
          length: P.

        Returns:
          The loss.
        """
        rows = rows.clone()
        with self._torch.no_grad():
            reference = self._log_probs(self._reference, rows, length)
        log_probs = self._log_probs(self.policy, rows, length)
        regularised = rewards - self._beta * (log_probs.detach() - reference)
        groups = regularised.reshape(-1, self._group_size)
        others = (groups.sum(dim=1, keepdim=True) - groups) / (self._group_size - 1)
        loss = -((groups - others).flatten() * log_probs).mean()
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        return loss.detach()
