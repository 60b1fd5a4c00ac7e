"""Two sets side by side: their inputs aligned, and how their scores differ."""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING, Any

import msgspec

from nbrun.core import PackageMissing, counted, plain, printable, readable, shown, visible
from nbrun.render import words
from nbrun.sessions.scoring import Mean, Value, mean_lines, named, paired

if TYPE_CHECKING:
    import pandas as pd

    from nbrun.sessions.run_set import RunSet
    from nbrun.sessions.scoring import SetItem

SHOWN_ROWS = 10
"""How many inputs are shown one by one: those whose scores differ most."""
_CELL = "text-align:left;vertical-align:top;overflow-wrap:anywhere"


class Pair(msgspec.Struct, frozen=True):
    """An input that both sets have: its place in each, its key, if it has one, and its scores; None without one."""

    first: int
    second: int
    key: str | None
    prompt: str
    scores: tuple[Value | None, Value | None]

    @property
    def differences(self) -> dict[str, float]:
        """By how much the second score is greater than the first, by name; nothing if one of them is missing."""
        first, second = (named(score) if score is not None else {} for score in self.scores)
        return {name: second[name] - first[name] for name in first if name in second}

    @property
    def title(self) -> str:
        """What it is called: its key, or its place."""
        return f"input {self.first}" if self.key is None else shown(self.key, 60)


class SetComparison:
    """Two sets, and how the second differs from the first.

    `pairs` are the inputs that both have: of the same key if all have keys, else of the same place. `differences` is by
    how much the second set's scores are greater, by name: the mean of all pairs that both sets have scored, with the
    95 % interval of a paired bootstrap.
    """

    def __init__(self, first: RunSet, second: RunSet) -> None:
        self.sets = (first, second)
        self.pairs, self._alone = _paired(first, second)
        by_name: dict[str, list[float]] = {}
        for pair in self.pairs:
            for name, difference in pair.differences.items():
                by_name.setdefault(name, []).append(difference)
        self.differences: dict[str, Mean] = {name: paired(found) for name, found in by_name.items()}

    @property
    def changed(self) -> list[Pair]:
        """The inputs whose scores differ, the greatest differences first."""
        found = [pair for pair in self.pairs if any(pair.differences.values())]
        return sorted(found, key=lambda pair: -max(map(abs, pair.differences.values())))

    def to_pandas(self) -> pd.DataFrame:
        """Return a DataFrame with a row for each pair; raises `PackageMissing` without pandas."""
        try:
            import pandas as pd
        except ImportError:
            raise PackageMissing("to_pandas() needs pandas, which is not installed: pip install pandas") from None

        outputs = [one.outputs() for one in self.sets]
        rows = []
        for pair in self.pairs:
            row: dict[str, Any] = {"key": pair.key, "prompt": pair.prompt}
            row |= {"output_1": outputs[0][pair.first], "output_2": outputs[1][pair.second]}
            for name, difference in pair.differences.items():
                suffix = f".{name}" if name else ""
                values = [named(score)[name] for score in pair.scores if score is not None]
                row |= {f"score_1{suffix}": values[0], f"score_2{suffix}": values[1], f"difference{suffix}": difference}
            rows.append(row)
        return pd.DataFrame(rows, columns=None if rows else ["key", "prompt", "output_1", "output_2"])

    # --- shown -----------------------------------------------------------------------------------

    def _lines(self) -> list[str]:
        lines = [
            f"{one!r} · {' · '.join([*mean_lines(one.scores.means), words.usage_words(one.usage) or 'no tokens'])}"
            for one in self.sets
        ]
        first, second = (one.number for one in self.sets)
        lines.append(f"{counted(len(self.pairs), 'input')} in both" + self._left_out())
        for name, mean in self.differences.items():
            up, down = self._moved(name)
            what = shown(name, 60) if name else "score"
            moved = f"{up:,} higher, {down:,} lower, of {mean.count:,}"
            lines.append(f"{what}, set #{second} less set #{first}: {mean}; {moved}")
        if not self.differences:
            lines.append("no input has a score in both: start the sets with score=…")
        return lines

    def _left_out(self) -> str:
        parts = [
            f"{count:,} only in set #{one.number}" for count, one in zip(self._alone, self.sets, strict=True) if count
        ]
        return f", {', '.join(parts)}" if parts else ""

    def _moved(self, name: str) -> tuple[int, int]:
        found = [pair.differences.get(name, 0.0) for pair in self.pairs]
        return sum(one > 0 for one in found), sum(one < 0 for one in found)

    def __repr__(self) -> str:
        return visible(printable("\n".join(self._lines())))

    def _repr_html_(self) -> str:
        lines = "".join(f"<div>{escape(visible(printable(line)))}</div>" for line in self._lines())
        changed = self.changed
        if not changed:
            return f'<div class="mathjax_ignore tex2jax_ignore">{lines}</div>'
        heads = ["input", *(f"set #{one.number}" for one in self.sets)]
        head = "".join(f'<th style="{_CELL}">{escape(text)}</th>' for text in heads)
        rows = "".join(self._row(pair) for pair in changed[:SHOWN_ROWS])
        more = len(changed) - SHOWN_ROWS
        rest = f"<div>… {counted(more, 'more input')} with another score</div>" if more > 0 else ""
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table>"
        return f'<div class="mathjax_ignore tex2jax_ignore">{lines}{table}{rest}</div>'

    def _row(self, pair: Pair) -> str:
        cells = [f"{pair.title}: {shown(pair.prompt, 200)}"]
        for one, place, score in zip(self.sets, (pair.first, pair.second), pair.scores, strict=True):
            cells.append(f"{readable(plain(score))} · {shown(_output(one, place), 300)}")
        row = (f'<td style="{_CELL}">{escape(visible(printable(text)))}</td>' for text in cells)
        return f"<tr>{''.join(row)}</tr>"


def _output(one: RunSet, place: int) -> str:
    run = one[place]
    return words.answer_of(run.whole_record)


def _paired(first: RunSet, second: RunSet) -> tuple[list[Pair], tuple[int, int]]:
    """Return the inputs that both sets have, in the order of the first, and how many only one of them has."""
    ours, theirs = first.items(), second.items()
    scores = first.scores, second.scores

    def score(which: int, at: int) -> Value | None:
        found: Value | None = scores[which][at] if at < len(scores[which]) else None
        return found

    has_keys = all(item.key is not None for item in (*ours, *theirs))
    others: dict[object, SetItem] = {item.key if has_keys else item.index: item for item in theirs}
    pairs = []
    for item in ours:
        other = others.get(item.key if has_keys else item.index)
        if other is not None:
            values = score(0, item.index), score(1, other.index)
            pairs.append(Pair(item.index, other.index, item.key, item.prompt, values))
    return pairs, (len(ours) - len(pairs), len(theirs) - len(pairs))
