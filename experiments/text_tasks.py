"""Problems in words whose answers are numbers: the tokens of a table, checked on the host.

Where a token task draws problems and checks them inside the program, here they are rows of a table
and the program calls the host, which decodes a group of completions and reads their numbers:

    answers = task.answers(problems, tokens, mask)      # [B, G]; 0 is right, -1 is none

Rows are padded with 0 whatever the tokenizer's padding is: masks say what counts.
"""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec
from jaxtyping import Array, Float, Int

from bellmax.envs.token_tasks import TokenProblem
from bellmax.experiments import mesh as mesh_lib
from bellmax.experiments.data import tokenizers, verifiers

# Integers of one array that the host is called with. XLA's CPU client copies larger ones (100 KiB
# and more) on a thread of its pool, which may all be waiting for the host's answer.
_PIECE = 16384


class Solution(NamedTuple):
    """What solves and checks a problem in words.

    Attributes:
      row: its place among `TextTask.numbers`.
      tokens: the published solution, cut where it is too long. [N].
      mask: 1 on the solution's tokens. [N].
    """

    row: Int[Any, ""]
    tokens: Int[Any, " N"]
    mask: Float[Any, " N"]


class Stored(NamedTuple):
    """A group of completions of a problem that another policy has written.

    Attributes:
      tokens: ids, the end token included. [G, N].
      mask: 1 on the tokens that count. [G, N].
      rewards: of each. [G].
      answers: numbers of their answers, as `verifiers.answer_numbers` gives them. [G].
      log_probs: of each token under that policy, nats; None where they are not known. [G, N].
    """

    tokens: Int[Any, "G N"]
    mask: Float[Any, "G N"]
    rewards: Float[Any, " G"]
    answers: Int[Any, " G"]
    log_probs: Float[Any, "G N"] | None


class TextTask(NamedTuple):
    """Problems in words, each with a number that is its answer.

    Attributes:
      tokenizer: turns text into ids and back.
      numbers: the right number of every problem, as text.
      max_new_tokens: most tokens of a completion, the end token included.
      mesh: the devices; each has its own rows checked, by the process that it belongs to.
    """

    tokenizer: tokenizers.Tokenizer
    numbers: tuple[str, ...]
    max_new_tokens: int
    mesh: Mesh

    @property
    def vocab_size(self) -> int:
        """Tokens of the tokenizer; a checkpoint's network may have more."""
        return self.tokenizer.vocab_size

    @property
    def end_token(self) -> int:
        """Id of the token that ends a completion."""
        return self.tokenizer.end_id

    @property
    def marker(self) -> None:
        """No token parts steps and answer: how a number is marked is a matter of words."""

    def demonstration(self, problem: TokenProblem) -> tuple[Int[Array, " N"], Float[Array, " N"]]:
        """Returns the published solution of a problem.

        Args:
          problem: the problem, whose solution is a `Solution`.

        Returns:
          Tokens and mask. [N] each.
        """
        return problem.solution.tokens, problem.solution.mask

    def correct_answer(self, problem: TokenProblem) -> Int[Array, ""]:
        """Returns the number of the right answer, which is 0 in every problem.

        Args:
          problem: the problem.
        """
        del problem
        return jnp.zeros((), jnp.int32)

    def answers(
        self, problems: TokenProblem, tokens: Int[Array, "B G N"], mask: Array
    ) -> Int[Array, "B G"]:
        """Returns numbers for the answers of completions, as `verifiers.answer_numbers` gives them.

        A completion is judged by its text alone, whether it has come to its end token or not.

        Args:
          problems: [B, ...].
          tokens: completions of each. [B, G, N].
          mask: 1 on the tokens that count. [B, G, N].

        Returns:
          0 for the right answer, the same number above 0 for the same wrong one within a group,
          -1 for none. [B, G].
        """

        def check(rows: Array, shown: Array) -> Array:
            flat = shown.reshape(-1)
            pieces = [flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE)]
            found = jax.ShapeDtypeStruct(shown.shape[:2], jnp.int32)
            return jax.pure_callback(self._answers_on_host, found, rows, *pieces)

        shown = jnp.where(jnp.asarray(mask) != 0, tokens, -1)
        divides = tokens.shape[0] % mesh_lib.row_share(self.mesh) == 0
        spec = PartitionSpec(mesh_lib.BATCH_AXES if divides else None)
        checked = jax.shard_map(
            check, mesh=self.mesh, in_specs=(spec, spec), out_specs=spec, check_vma=False
        )
        return checked(jnp.asarray(problems.solution.row), shown)

    def _answers_on_host(self, rows: Any, *pieces: Any) -> np.ndarray:
        rows = np.asarray(rows)
        tokens = np.concatenate(pieces).reshape(len(rows), -1, self.max_new_tokens)
        found = [
            verifiers.answer_numbers([self._decode(ids) for ids in group], self.numbers[row])
            for row, group in zip(rows, tokens, strict=True)
        ]
        return np.array(found, np.int32)

    def _decode(self, ids: np.ndarray) -> str:
        # A network may have more ids than its tokenizer: they stand for nothing.
        known = ids[(ids >= 0) & (ids < self.tokenizer.vocab_size)]
        return self.tokenizer.decode(known.tolist())

    def as_text(self, tokens: Any, mask: Any) -> str:
        """Returns a row of tokens for a person to read.

        Args:
          tokens: ids. [N].
          mask: anything but 0 on the tokens to show. [N].

        Returns:
          The text; ids that the tokenizer does not have are left out.
        """
        return self._decode(np.asarray(tokens)[np.asarray(mask) != 0])
