"""Dialogs over the overview."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Label, OptionList

from llmos_top.glyphs import LETTERS, Glyphs
from llmos_top.keys import KEYS
from llmos_top.text import fit


class Confirm(ModalScreen[bool]):
    """A question whose answer is No unless somebody says yes. `question` is shown as it is, never as markup."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "yes"),
        Binding("n,escape,q", "answer(False)", "no"),
        Binding("left,right,h,l", "app.focus_next", show=False),
    ]

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Label(self._question, markup=False)
            with Horizontal():
                yield Button("No", id="no", compact=True)
                yield Button("Yes", id="yes", compact=True)

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, answer: bool) -> None:
        self.dismiss(answer)


class Ask(ModalScreen[str | None]):
    """A line to write; None when it is given up."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "close")]

    def __init__(self, question: str, hint: str, text: str) -> None:
        super().__init__()
        self._question, self._hint, self._text = question, hint, text

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Label(self._question, markup=False)
            yield Input(self._text, compact=True)
            yield Label(self._hint, markup=False, classes="hint")

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)


class Choose(ModalScreen[str | None]):
    """One of several names; None when none is chosen."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape,q", "dismiss(None)", "close"),
        Binding("j", "down", show=False),
        Binding("k", "up", show=False),
    ]

    def __init__(self, question: str, names: Sequence[str], now: str) -> None:
        super().__init__()
        self._question, self._names, self._now = question, names, now

    def compose(self) -> ComposeResult:
        with Vertical(id="dialog"):
            yield Label(self._question, markup=False)
            yield OptionList(*self._names, markup=False, compact=True)

    def on_mount(self) -> None:
        self.query_one(OptionList).highlighted = self._names.index(self._now) if self._now in self._names else 0

    def action_down(self) -> None:
        self.query_one(OptionList).action_cursor_down()

    def action_up(self) -> None:
        self.query_one(OptionList).action_cursor_up()

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._names[event.option_index])


class Help(ModalScreen[None]):
    """All keys and what the state letters mean."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,q,question_mark,f1,enter", "dismiss(None)", "close")]

    def __init__(self, glyphs: Glyphs) -> None:
        super().__init__()
        self._glyphs = glyphs

    def compose(self) -> ComposeResult:
        keys = "\n".join(f"{fit(key.shown, 8)} {key.help}" for key in KEYS)
        states = "\n".join(f"{letter}{self._glyphs.state[name]}       {name}" for name, letter in LETTERS.items())
        with VerticalScroll(id="dialog"):
            yield Label("Keys", classes="heading")
            yield Label(keys, markup=False)
            yield Label("States", classes="heading")
            yield Label(states, markup=False)
            yield Label("Esc closes", classes="hint")
