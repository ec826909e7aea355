"""Texts as token ids and back, in the one way that training and scoring share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from rankdrift.errors import UserError

Head = Literal["lm", "classifier"]
Ids = list[int]


class Codec:
    """A tokenizer, the longest row in tokens, and the head that the tokens are for.

    Parameters
    ----------
    tokenizer
        A transformers tokenizer.
    max_length
        The longest row, special tokens included.
    head
        ``lm``, or ``classifier``, for which a text is closed as its tokenizer closes it.
    first_class
        Number of the task's first class among those of a classification head.

    """

    def __init__(self, tokenizer: Any, max_length: int, head: Head = "lm", first_class: int = 0) -> None:
        self.tokenizer, self.max_length, self.head = tokenizer, max_length, head
        self.first_class = first_class
        self._cues: dict[str, Ids] = {}
        self.before, self.behind = _special_tokens(tokenizer, head)

    @property
    def special(self) -> int:
        """How many tokens of a prompt are put there for every text."""
        return len(self.before) + len(self.behind)

    @property
    def eos(self) -> int:
        """The token that ends a generated answer; raises UserError where the tokenizer has none."""
        if self.tokenizer.eos_token_id is None:
            raise UserError(
                f"the tokenizer of {self.tokenizer.name_or_path or 'the model'} has no EOS token, which "
                "generated answers end with: set eos_token in its tokenizer_config.json"
            )
        return int(self.tokenizer.eos_token_id)

    def plain(self, texts: Sequence[str]) -> list[Ids]:
        """Return the tokens of texts, with no special ones added."""
        if not texts:
            return []
        backend = getattr(self.tokenizer, "backend_tokenizer", None)
        if backend is None:
            found: list[Ids] = self.tokenizer(list(texts), add_special_tokens=False).input_ids
            return found
        # the same tokens: transformers would wrap each text, which takes as long as tokenising it
        backend.no_truncation()
        backend.no_padding()
        backend.encode_special_tokens = self.tokenizer.split_special_tokens
        encodings = backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [encoding.ids for encoding in encodings]

    def joined(self, prompts: Sequence[str], targets: Sequence[str]) -> list[tuple[Ids, Ids]]:
        """Return the tokens of prompts and of targets as they are where both are one text.

        White space at a prompt's end goes with the target; the target's tokens are those of the whole text
        behind as many as the prompt has by itself. So does lm-evaluation-harness, and so a model meets a
        border in training as it does in scoring. Where no token of the target's own is left, it is
        tokenised alone. The prompt has the special tokens that begin a text.
        """
        heads = [prompt.rstrip() for prompt in prompts]
        tails = [
            prompt[len(head) :] + target for prompt, head, target in zip(prompts, heads, targets, strict=True)
        ]
        distinct = list(dict.fromkeys(heads))
        tokens = dict(zip(distinct, self.plain(distinct), strict=True))
        wholes = self.plain([head + tail for head, tail in zip(heads, tails, strict=True)])
        return [
            (self.before + tokens[head], whole[len(tokens[head]) :] or self.plain([tail])[0])
            for head, tail, whole in zip(heads, tails, wholes, strict=True)
        ]

    def cut(self, prompt: Ids, room: int, cue: str = "") -> Ids:
        """Return a prompt's tokens without those that ``room`` does not hold.

        It loses the first ones behind the special tokens; where it ends with a ``cue``, those before that.
        """
        over = len(prompt) - room
        if over <= 0:
            return prompt
        kept = len(self.before)
        if cue:
            kept = max(kept, room - len(self._cue(cue)))
        return prompt[:kept] + prompt[kept + over :]

    def room(self, answer: int, task: str) -> int:
        """Return the tokens a prompt may have beside an answer of so many; UserError where there are none."""
        room = self.max_length - answer
        if room <= self.special:
            raise UserError(
                f"data.max_length={self.max_length} leaves no room for a prompt of task '{task}' beside "
                f"{answer} tokens of an answer and {self.special} special ones; raise it"
            )
        return room

    def _cue(self, cue: str) -> Ids:
        if cue not in self._cues:
            self._cues[cue] = self.plain([cue])[0]
        return self._cues[cue]

    def decoded(self, ids: Sequence[int]) -> str:
        """Return the text of tokens, without special ones."""
        return str(self.tokenizer.decode(list(ids), skip_special_tokens=True))


def _special_tokens(tokenizer: Any, head: Head) -> tuple[Ids, Ids]:
    """Return what goes before a prompt and behind it: BOS; for a classifier also [CLS] and [SEP]."""
    whole, alone = (list(tokenizer("a", add_special_tokens=add).input_ids) for add in (True, False))
    first = next((at for at in range(len(whole)) if whole[at : at + len(alone)] == alone), 0)
    begin, after = whole[:first], whole[first + len(alone) :]
    starts = {tokenizer.bos_token_id} | ({tokenizer.cls_token_id} if head == "classifier" else set())
    before = begin if len(begin) == 1 and begin[0] in starts - {None} else []
    ends = tokenizer.sep_token_id is not None and after == [tokenizer.sep_token_id]
    return before, after if ends and head == "classifier" else []
