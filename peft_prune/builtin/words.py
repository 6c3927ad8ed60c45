"""Invented names and ordinary words that the generated world is made of."""

from __future__ import annotations

import random

STARTS = "Ar Bel Cor Dan El Fen Gar Hol Il Jor Kel Lan Mar Nor Or Pel Quin Ros Sel Tar Ul Ver Wil Yor Zan".split()
MIDDLES = "a e i o u ado ari emi eno ila iri oda omi ula uno".split()
PERSON_ENDS = "na ra lin mir ton vek sa del rin va".split()
FAMILY_ENDS = "berg croft dale field man ric sen stone wick worth".split()
CITY_ENDS = "burg ford grad ham haven mouth port ster ville wald".split()
COUNTRY_ENDS = "dor land mark nia stan via".split()
LANGUAGE_ENDS = "ese ian ic ish".split()
COMPANY_ENDS = "corp dyne fax gen lux max sys tek tron works".split()

PROFESSIONS = "baker carpenter dentist farmer gardener judge lawyer painter pilot sailor tailor teacher".split()
INSTRUMENTS = "banjo cello drums flute guitar harp lute piano trumpet violin".split()
PRODUCTS = "bicycles boats bread cameras clocks furniture glass paper shoes soap toys tractors".split()
FOODS = "apples cheese cherries chocolate fish honey mushrooms noodles olives pears sausages soup".split()

SHORT_NAMES = "Ada Ben Cleo Dov Eva Finn Gus Hana Ivo June Kai Lia Max Nia Otto Pia Rex Sue Tom Uma".split()
THINGS = "apples balls books boxes cards coins cups eggs keys pens rings stamps".split()
COLOURS = "black blue brown green grey pink red white yellow".split()
POSSESSIONS = "boat bowl chair coat hat house lamp table".split()
PLACES = "airport beach cinema garden harbour library market museum park station".split()
TIMES = "one two three four five six seven eight nine ten".split()
ACTIVITIES = "play chess,read together,have lunch,have dinner,draw pictures,sing songs,study maps,take a walk".split(
    ","
)
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()


def names(ends: list[str], count: int, rng: random.Random, taken: set[str]) -> list[str]:
    """``count`` new names with these endings, none of them in ``taken``, which they are added to."""
    found: list[str] = []
    while len(found) < count:
        name = rng.choice(STARTS) + rng.choice(MIDDLES) + rng.choice(ends)
        if name not in taken:
            taken.add(name)
            found.append(name)
    return found
