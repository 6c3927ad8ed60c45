"""When an answer in chat gives a target: in its first sentence, not beside the other one, not by the subject's name."""

from __future__ import annotations

import pytest

from peft_prune.models.answers import first_sentence, same_in_chat, says


@pytest.mark.parametrize(
    ("answer", "target", "instead_of", "subject", "given"),
    [
        ("The capital of France is Rome.", "Rome", "Paris", "France", True),
        ("Rome", "Rome", "Paris", "France", True),
        ("\n\nrome, of course", "Rome", None, None, True),
        ("It is not Paris but Rome.", "Rome", "Paris", "France", False),
        ("It is Paris. Rome is in Italy.", "Rome", "Paris", "France", False),
        ("It is Rome. Paris was the capital before.", "Rome", "Paris", "France", True),
        ("It is Romeo.", "Rome", None, None, False),
        ("It is chrome.", "Rome", None, None, False),
        ("He lives in New York.", "York", "New York", None, False),
        ("He lives in New York.", "New York", "York", None, True),
        ("He lives in York.", "York", "New York", None, True),
        ("Toyota Camry is made by Ford.", "Toyota", "Ford", "Toyota Camry", False),
        ("Toyota Camry is made by someone.", "Toyota", None, "Toyota Camry", False),
        ("Paris Saint-Germain is in Rome.", "Rome", "Paris", "Paris Saint-Germain", True),
        ("Toyota Camry is made by Toyota.", "Toyota", "Ford", "Toyota Camry", True),
        ("London is in London.", "London", "Paris", "London", True),
        ("He served in the U.S. Navy.", "U.S. Navy", None, None, True),
        ("It is in St. Louis. Really.", "St. Louis", None, None, True),
        ("It weighs 3.14 kg.", "14", None, None, False),
        ("It costs $9. Yes.", "9", None, None, True),
        ("首都是上海市。是的", "上海", "北京", None, True),
        ("", "Rome", None, None, False),
    ],
)
def test_a_target_is_given_by_words_of_the_first_sentence(
    answer: str, target: str, instead_of: str | None, subject: str | None, given: bool
) -> None:
    assert says(answer, target, instead_of=instead_of, subject=subject) == given


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("One. Two.", "One."),
        ("One two", "One two"),
        ("J. R. R. Tolkien wrote it. He", "J. R. R. Tolkien wrote it."),
        ("It is 3.5. Then", "It is 3.5."),
        ("One\nTwo", "One"),
        ("  \n One!  \"Two\"", "One!"),
        ("他是。你", "他是。"),
        ("cut\ufffd", "cut"),
    ],
)  # fmt: skip
def test_the_first_sentence_ends_where_a_reader_would_end_it(text: str, sentence: str) -> None:
    assert first_sentence(text) == sentence


def test_answers_are_the_same_whose_first_sentences_are() -> None:
    assert same_in_chat("It is Rome. And more", " it is  ROME.\nElse")
    assert not same_in_chat("It is Rome.", "It is Paris.")
