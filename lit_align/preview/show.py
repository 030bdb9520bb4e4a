"""Formats previewed rows as lines for a terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from textwrap import fill, shorten

from lit_align.batch import TokenizedPair
from lit_align.data.encoder import Encoder
from lit_align.preview.rendering import Comparison, Piece, changes, compare, pieces, unwritten
from lit_align.preview.rows import PreviewPair, PreviewRow
from lit_align.preview.terminal import BOLD, CYAN, DIM, GREEN, RED, REVERSE, YELLOW, Cell, Terminal, cells, plain
from lit_align.records import Candidate, CandidateSet, PreferencePair
from lit_align.rows.loading import as_set
from lit_align.rows.reading import BadRow

PROMPT = ("  │ ", CYAN)
CHOSEN = ("  + ", GREEN)
REJECTED = ("  - ", RED)
OTHER = ("  * ", YELLOW)
"""The marks of a row's parts: a sign at the left and, on a terminal with colours, a colour."""
_CONTEXT = 60  # characters in front of a difference, at most
_LONGEST = 400  # characters of a difference, at most
_PROMPT_TOO_LONG = "prompt_too_long"


@dataclass
class Shown:
    """The parts of a row that were shown already, and are not shown again.

    Args:
        prompt: the token ids of the last prompt.
        answers: the candidates, by their `id`.
    """

    prompt: list[int] = field(default_factory=list)
    answers: set[int] = field(default_factory=set)


@dataclass(frozen=True)
class RowText:
    """Formats rows.

    Args:
        terminal: the terminal that they are printed on.
        encoder: the encoder that tokenised them.
        selector: the name of the selector, which makes pairs of candidates.
        judge: the name of the judge, which scores candidates; None without one.
        samples: whether answers are sampled from the model.
        use: the use of the answers' tokens, such as "trained on".
    """

    terminal: Terminal
    encoder: Encoder
    selector: str
    judge: str | None
    samples: bool
    use: str

    def legend(self) -> Iterator[str]:
        """Yields the meaning of the signs."""
        signs = [("│ prompt", CYAN), ("+ chosen", GREEN), ("- rejected", RED), ("* any other answer", YELLOW)]
        yield "  ".join(self.terminal.styled(text, style) for text, style in signs)
        special = self._line([Piece("special token", True)], "")
        yield "  ".join([special, "↵ new line", "· blank at an end", "\\x1b a character that is not shown"])

    def lines(self, row: PreviewRow) -> Iterator[str]:
        """Yields all lines about a row."""
        yield self.terminal.styled(plain(row.where), BOLD)
        if row.record is None or row.left_out:
            yield from self._note(f"Left out: {row.left_out}.")
            return
        yield from self._candidates(row)
        if unused := [name.partition("/")[2] for name in row.counts if name.startswith("unused_")]:
            yield from self._note(f"Not read, unless by a judge's rule: {', '.join(unused)}.")
        if not row.pairs:
            yield from self._prompt_alone(row)
        above = Shown()
        for pair in row.pairs:
            yield from self._pair(pair, row.scored, above)

    def _candidates(self, row: PreviewRow) -> Iterator[str]:
        assert row.record is not None
        if not isinstance(row.record, CandidateSet) or not row.record.candidates:
            return
        count = len(row.record.candidates)
        if not row.scored:
            judge = f"the judge ({self.judge}), which is not asked here: --judge true asks it"
            scores = judge if self.judge is not None else "a judge, and there is none: set `data.judge`"
            yield from self._note(f"{count} candidates. Their scores come from {scores}.")
            return
        lost = ", ".join(f"{name.replace('_', ' ')}: {n}" for name, n in row.counts.items() if n and "/" not in name)
        pairs_made = f"{self.selector} makes {len(row.pairs)} pair{'s' * (len(row.pairs) != 1)}"
        yield from self._note(f"Of {count} candidates {pairs_made}{f' ({lost})' if lost else ''}:")
        for candidate in sorted(row.record.candidates, key=_by_score):
            yield self._candidate_line(candidate, row.pairs)

    def _candidate_line(self, candidate: Candidate, pairs: Sequence[PreviewPair]) -> str:
        roles = ["chosen" for pair in pairs if pair.pair.chosen is candidate]
        roles += ["rejected" for pair in pairs if pair.pair.rejected is candidate]
        score = "no score" if candidate.score is None else f"{candidate.score:.3g}"
        start = f"{score:>10}  {', '.join(dict.fromkeys(roles)):<9} "
        text = shorten(plain(candidate.text.replace("\n", " ")), self.terminal.width - len(start), placeholder=" ...")
        style = GREEN if "chosen" in roles else RED if roles else DIM
        return self.terminal.styled(start + text, style)

    def _prompt_alone(self, row: PreviewRow) -> Iterator[str]:
        assert row.record is not None
        try:
            ids = self.encoder.encode_prompt(row.record.prompt)
        except BadRow as error:
            yield from self._note(f"Left out: {error.why}.")
            return
        yield from self._part(f"prompt: {len(ids)} tokens", pieces(self.encoder.tokenizer, ids), PROMPT)
        if not as_set(row.record).candidates:
            yield from self._note("No answers: the policy's own are trained on, in on-policy rounds.")

    def _pair(self, pair: PreviewPair, scored: bool, above: Shown) -> Iterator[str]:
        if pair.dropped:
            yield from self._note(f"Dropped: {self._reason(pair)}.")
        tokens = pair.tokens
        if tokens is None:
            return
        prompt = tokens.prompt.tolist()
        if prompt != above.prompt:
            cut = f", and {pair.cut} more cut off its left end" if pair.cut else ""
            yield from self._part(f"prompt: {len(prompt)} tokens{cut}", pieces(self.encoder.tokenizer, prompt), PROMPT)
        compared = []
        for name, answer, ids, mark in _answers(pair.pair, tokens, scored):
            if id(answer) in above.answers:
                continue
            use = f", {self.use}" if scored and not pair.dropped else ""
            score = "" if answer.score is None else f"; score {answer.score:.3g}"
            shown = pieces(self.encoder.tokenizer, ids, prompt)
            yield from self._part(f"{name}: {len(ids)} tokens{use}{score}", shown, mark)
            compared.append((name, compare(self.encoder, pair.pair.prompt, answer, [*prompt, *ids], pair.cut)))
            above.answers.add(id(answer))
        above.prompt = prompt
        yield from self._comparisons(compared)
        yield from self._unwritten(pair)
        yield from self._sampled(pair, prompt)

    def _reason(self, pair: PreviewPair) -> str:
        encoder = self.encoder
        tokens = pair.tokens
        if tokens is not None and pair.dropped == _PROMPT_TOO_LONG:
            limit = f"max_prompt_tokens is {encoder.max_prompt_tokens}"
            return f"the prompt has {len(tokens.prompt)} tokens, and {limit} (too_long: cut_prompt would cut it)"
        if tokens is not None and pair.dropped == "completion_too_long":
            longest = max(len(ids) for ids in (tokens.chosen, tokens.rejected, tokens.target) if ids is not None)
            return f"an answer has {longest} tokens, and max_completion_tokens is {encoder.max_completion_tokens}"
        if pair.dropped == "equal_completions":
            return "both answers are the same tokens"
        return pair.dropped.replace("_", " ")

    def _comparisons(self, compared: Sequence[tuple[str, Comparison]]) -> Iterator[str]:
        for name, comparison in compared:
            if comparison.refused:
                yield from self._note(f"The chat template does not write the whole chat: {plain(comparison.refused)}")
            elif comparison.differs:
                yield from self._difference(name, comparison)
        names_by_end: dict[str, list[str]] = {}  # of the answers whose text is the template's
        for name, comparison in compared:
            if comparison.template is not None and not comparison.differs:
                names_by_end.setdefault(_describe_end(comparison), []).append(name)
        for end, names in names_by_end.items():
            of_which = "" if len(names) == len(compared) else f" for prompt and {' and '.join(names)}"
            yield from self._note(f"The template writes the same text{of_which}{end}.")

    def _unwritten(self, pair: PreviewPair) -> Iterator[str]:
        """Yields lines about parts of the chat that the template leaves out, and about answers that it changes."""
        prompt = pair.pair.prompt
        parts = list[str]()
        for name, answer in (("the chosen answer", pair.pair.chosen), ("the rejected answer", pair.pair.rejected)):
            parts += unwritten(self.encoder, prompt, answer, name)
            if changes(self.encoder, prompt, answer):
                yield from self._note(f"The template writes {name} otherwise than the row has it.")
        if parts:
            yield from self._note(f"The template writes nothing of: {', '.join(dict.fromkeys(parts))}.")

    def _difference(self, name: str, comparison: Comparison) -> Iterator[str]:
        """Yields both texts from a little before the place at which they differ."""
        assert comparison.template is not None
        yield from self._note(f"The template writes other text for prompt and {name}, from here on:")
        before = comparison.template[: comparison.same]
        before = before[max(before.rfind("\n", 0, -1) + 1, len(before) - _CONTEXT) :]
        for title, text in (("tokens", comparison.ours), ("template", comparison.template_rest)):
            shown = [*cells(before, DIM), *cells(text[:_LONGEST], f"{BOLD};{YELLOW}")]
            shown += cells("..." if len(text) > _LONGEST else "", DIM)
            yield from self.terminal.lines(shown, f"  {title:>8} ")

    def _sampled(self, pair: PreviewPair, prompt: Sequence[int]) -> Iterator[str]:
        if not self.samples or pair.dropped:
            return
        ids = self.encoder.encode_prompt(pair.pair.prompt)
        if ids != prompt:
            title = f"a sampled answer would be appended to another prompt: {len(ids)} tokens"
            yield from self._part(title, pieces(self.encoder.tokenizer, ids), PROMPT)

    def _part(self, title: str, shown: Sequence[Piece], mark: tuple[str, str]) -> Iterator[str]:
        sign, style = mark
        yield self.terminal.styled(title, style)
        yield from self.terminal.lines(self._cells(shown, style), sign, style)

    def _cells(self, shown: Sequence[Piece], style: str) -> list[Cell]:
        """Lays out pieces, with special tokens reversed or, on a terminal without styles, in brackets."""
        laid_out: list[Cell] = []
        for piece in shown:
            if not piece.special:
                laid_out += cells(piece.text, style)
            elif self.terminal.colour:
                laid_out += cells(piece.text, f"{style};{REVERSE}".strip(";"))
            else:
                laid_out += cells(f"⟦{piece.text}⟧")
        return laid_out

    def _line(self, shown: Sequence[Piece], style: str) -> str:
        return "".join(self.terminal.lines(self._cells(shown, style), ""))

    def _note(self, text: str) -> Iterator[str]:
        yield self.terminal.styled(fill(text, self.terminal.width), "")


def _answers(
    pair: PreferencePair, tokens: TokenizedPair, scored: bool
) -> Iterator[tuple[str, Candidate, list[int], tuple[str, str]]]:
    """Yields name, answer, token ids and mark of each answer of a pair."""
    sides = (("chosen", pair.chosen, tokens.chosen, CHOSEN), ("rejected", pair.rejected, tokens.rejected, REJECTED))
    for name, answer, ids, mark in sides:
        yield (name, answer, ids.tolist(), mark) if scored else ("candidate", answer, ids.tolist(), OTHER)
    if tokens.target is not None:
        yield "target", Candidate(pair.target or ""), tokens.target.tolist(), OTHER


def _describe_end(comparison: Comparison) -> str:
    """Says which of two texts that begin alike continues, and how; empty if they are equal."""
    template_end = plain(comparison.template_rest)
    if comparison.ours:
        instead = f' where the template has "{template_end}"' if template_end else ""
        return f', without the "{plain(comparison.ours)}" that ends the answer{instead}'
    return f', and then "{template_end}", which the model does not get' if template_end else ""


def _by_score(candidate: Candidate) -> float:
    return float("inf") if candidate.score is None else -candidate.score
