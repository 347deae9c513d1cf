"""The words of the demo's chats: tenants with a voice of their own, made from a seed. Pure; called by `workload` only.

Sentences are assembled from small grammars instead of being stored, so that every seed has prompts nobody has cached and
the lengths are free. They mean little, but they tokenize as prose does: about 1.2 tokens a word in Qwen's vocabulary.
"""

import random
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Trade:
    """What a tenant is about: who speaks, and the nouns of the trade."""

    name: str
    role: str
    things: tuple[str, ...]
    people: tuple[str, ...]


TRADES: tuple[Trade, ...] = (
    Trade(
        "harbour-bank",
        "the assistant of Harbour Bank",
        ("transfer", "card", "standing order", "mortgage", "overdraft", "statement", "deposit", "exchange fee"),
        ("account holder", "branch clerk", "auditor", "joint owner"),
    ),
    Trade(
        "ferry-line",
        "the booking desk of the Northern Ferry Line",
        ("cabin", "car deck", "crossing", "boarding pass", "bicycle place", "delay notice", "meal voucher", "return ticket"),
        ("passenger", "purser", "deck officer", "tour leader"),
    ),
    Trade(
        "city-library",
        "the librarian on duty at the City Library",
        ("loan", "reservation", "reading room", "microfilm", "late fee", "map folio", "branch transfer", "membership"),
        ("reader", "archivist", "school class", "volunteer"),
    ),
    Trade(
        "bike-works",
        "the workshop planner of Bike Works",
        ("gear cable", "disc brake", "wheel", "battery pack", "frame number", "spare part", "service slot", "invoice"),
        ("rider", "mechanic", "courier", "supplier"),
    ),
    Trade(
        "tax-office",
        "the help line of the municipal tax office",
        ("assessment", "property record", "instalment", "appeal", "dog licence", "receipt", "deadline", "exemption"),
        ("citizen", "case worker", "trader", "tenant association"),
    ),
    Trade(
        "green-power",
        "the service agent of the Green Power cooperative",
        ("meter reading", "solar roof", "night tariff", "outage report", "heat pump", "monthly bill", "grid fee", "contract"),
        ("member", "engineer", "landlord", "installer"),
    ),
    Trade(
        "game-studio",
        "the player support of Lantern Studio",
        ("save file", "season pass", "guild", "crash log", "refund", "controller", "patch", "leaderboard"),
        ("player", "moderator", "guild leader", "tester"),
    ),
    Trade(
        "herb-pharmacy",
        "the counter assistant of the Herb Lane pharmacy",
        ("prescription", "ointment", "dose plan", "delivery box", "allergy card", "refill", "thermometer", "label"),
        ("patient", "pharmacist", "nurse", "carer"),
    ),
)

STATES = ("late", "missing", "charged twice", "in the wrong name", "damaged", "out of date", "disputed", "on hold", "incomplete", "locked")
MOMENTS = ("before noon", "within two days", "at the end of the month", "on the next working day", "after the second reminder",
           "during a public holiday", "while the system is being updated", "in the first week")  # fmt: skip
ACTIONS = ("apologise once and offer {a} instead", "ask for the number of {a} and nothing else", "hand the case to {who}",
           "check {a} against {b} first", "quote the rule about {a} word by word", "promise no date for {a}",
           "say plainly that {b} is not affected", "write a note for {who}")  # fmt: skip
MANNERS = ("in two short sentences", "in a list of at most four points", "without technical terms", "in the language of the question",
           "with the amount rounded to whole units", "calmly, even when the other side is not")  # fmt: skip
REQUESTS = ("What should I do about {a}?", "Can you explain why {a} is {state}?", "Who decides about {a} when {b} is {state}?",
            "Please compare {a} with {b} for me.", "Could you write a short note to {who} about {a}?",
            "Is it normal that {a} is {state} {moment}?")  # fmt: skip
FACTS = ("Yesterday {who} told me that {a} is {state}.", "The reference on {a} is {number}.", "I sent {a} {moment} and heard nothing.",
         "There is also {b}, which was {state} in {month}.", "My neighbour had the same with {b} and got {number} back.",
         "On page {page} it says that {a} counts only {moment}.", "The photo of {a} shows the number {number}.",
         "When I called, {who} read me a rule about {b}.")  # fmt: skip
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")


def system_prompt(rng: random.Random, trade: Trade, words: int) -> str:
    """Instructions of about this many words: a role and numbered rules."""
    lines = [f"You are {trade.role}. Follow the rules below; a rule with a lower number wins."]
    count, number = len(lines[0].split()), 0
    while count < words:
        number += 1
        line = f"{number}. {_rule(rng, trade)}"
        lines.append(line)
        count += len(line.split())
    return "\n".join(lines)


def user_message(rng: random.Random, trade: Trade, words: int) -> str:
    """A question, with as much told before it as the words allow."""
    question = _filled(rng, trade, rng.choice(REQUESTS))
    told: list[str] = []
    count = len(question.split())
    while count < words:
        fact = _filled(rng, trade, rng.choice(FACTS))
        told.append(fact)
        count += len(fact.split())
    return " ".join((*told, question))


def _rule(rng: random.Random, trade: Trade) -> str:
    a = rng.choice(trade.things)
    action = _filled(rng, trade, rng.choice(ACTIONS))
    return f"If {_article(a)} is {rng.choice(STATES)} {rng.choice(MOMENTS)}, {action}, {rng.choice(MANNERS)}."


def _filled(rng: random.Random, trade: Trade, sentence: str) -> str:
    a, b = rng.sample(trade.things, 2)
    return sentence.format(
        a=f"the {a}",
        b=f"the {b}",
        who=_article(rng.choice(trade.people)),
        state=rng.choice(STATES),
        moment=rng.choice(MOMENTS),
        month=rng.choice(MONTHS),
        number=_number(rng),
        page=rng.randrange(2, 60),
    )


def _number(rng: random.Random) -> str:
    return f"{rng.randrange(10, 99)}-{rng.randrange(1000, 9999)}"


def _article(noun: str) -> str:
    return f"an {noun}" if noun[0] in "aeiou" else f"a {noun}"
