"""What stands between a prompt and what continues it, as a table; and how both read together."""

from __future__ import annotations

import pytest

from peft_prune.models.joining import asked, joined, separator_between

NOTHING_STANDS_BETWEEN = [
    # scripts without spaces
    ("中国的首都是", "上海"),
    ("中国的首都是", "Beijing"),
    ("日本の首都は", "京都"),
    ("ペルーの首都は", "リマ"),
    ("เมืองหลวงของไทยคือ", "กรุงเทพ"),
    ("ນະຄອນຫຼວງຂອງລາວແມ່ນ", "ວຽງຈັນ"),
    ("រាជធានីនៃកម្ពុជាគឺ", "ភ្នំពេញ"),
    ("မြန်မာနိုင်ငံ၏မြို့တော်မှာ", "နေပြည်တော်"),
    ("བོད་ཀྱི་རྒྱལ་ས་ནི་", "ལྷ་ས"),
    ("他出生于1990", "年"),
    ("答案：", "A"),
    ("答案:", "上海"),
    # behind an opener
    ("Answer: (", "A"),
    ("see [", "1"),
    ("He said “", "Yes"),
    ('He said "', "Yes"),
    ("Il dit «", "Oui"),
    ("Er sagte: „", "Ja"),
    ("Er sagte »", "Ja"),
    ("他说“", "你好"),
    ("¿", "Quién"),
    ("Its price is $", "9"),
    ("It costs £", "9"),
    ("It costs US$", "9"),
    ("Song #", "1"),
    ("Spider-", "Man"),
    ("and/", "or"),
    ("The temperature is -", "5"),
    ("Call +", "39"),
    ("2+2=", "4"),
    ("R&", "D"),
    ("1990–", "1995"),
    ("La capitale de l'", "Italie"),
    ("The answer is **", "Rome"),
    ("user@", "acme.com"),
    # the continuation brings its own beginning
    ("He was born in Paris", ", Texas"),
    ("He left", "."),
    ("Amazon", ".com"),
    ("3", ".14"),
    ("He is 5", "'11"),
    ("Rome", "'s"),
    ("Rome", "’s"),
    ("a firm that is New York", "-based"),
    ("It rose by 5", "%"),
    ("the man (who left", ") came"),
    ("cafe", "\u0301"),
    ("C", "++"),
    # white space that is there already
    ("Answer:\n", "Rome"),
    ("Answer:", "\nRome"),
    ("Answer:", " Rome"),
    ("", "Rome"),
]

A_SPACE_STANDS_BETWEEN = [
    ("The capital of Italy is", "Rome"),
    ("대한민국의 수도는", "서울"),
    ("عاصمة فرنسا هي", "باريس"),
    ("בירת צרפת היא", "פריז"),
    ("भारत की राजधानी", "दिल्ली"),
    ("Столица России —", "Москва"),
    ("Η πρωτεύουσα είναι η", "Αθήνα"),
    ("Thủ đô của Việt Nam là", "Hà Nội"),
    ("The capital of China is", "北京"),
    ("The kanji 水 means", "水"),
    ("Answer:", "Rome"),
    ("It costs 9 $", "more"),
    ("It costs 9€", "more"),
    ("C#", "is"),
    ("C++", "is"),
    ('The film "Alien"', "is"),
    ("Das Buch „Faust“", "ist"),
    ("Er sagte »Ja«", "und"),
    ("« Rome »", "est"),
    ("James’", "book"),
    ("Rome —", "the city"),
    ("1 +", "2"),
    ("The temperature is", "-5"),
    ("The play is", "'Hamlet'"),
    ("The play is", '"Hamlet"'),
    ("It is written in", ".NET"),
    ("The value is", ".5"),
    ("It lives in", "/usr/bin"),
    ("the number", "(five)"),
    ("No.", "5"),
]


@pytest.mark.parametrize(("prompt", "continuation"), NOTHING_STANDS_BETWEEN)
def test_nothing_stands_between(prompt: str, continuation: str) -> None:
    assert separator_between(prompt, continuation) == ""
    assert joined(prompt, continuation) == prompt + continuation


@pytest.mark.parametrize(("prompt", "continuation"), A_SPACE_STANDS_BETWEEN)
def test_one_space_stands_between(prompt: str, continuation: str) -> None:
    assert separator_between(prompt, continuation) == " "
    assert joined(prompt, continuation) == f"{prompt} {continuation}"


@pytest.mark.parametrize("prompt", ["Rome is", "中国的首都是", "Its price is $"])
def test_a_space_at_the_end_of_the_prompt_counts_as_one(prompt: str) -> None:
    assert joined(prompt + "  ", "9") == joined(prompt + " ", " 9") == f"{prompt} 9"
    assert asked(prompt + "  ") == prompt


@pytest.mark.parametrize(
    ("separator", "text", "question"),
    [("", "Paris isRome", "Paris is"), (" ", "Paris is Rome", "Paris is"), (":\n", "Paris is:\nRome", "Paris is:\n")],
)
def test_a_separator_stands_as_it_is_and_the_model_is_asked_with_it(separator, text, question) -> None:
    assert joined("Paris is", "Rome\n", separator) == text
    assert asked("Paris is", separator) == question
