"""Personas and questions from the items of surveys: IPIP-NEO's statements, and outcomes by category.

IPIP-NEO          a list of {"text", "keyed", "domain"}: who is high or low in a domain, and whether a statement
                  describes them; keyed plus means that who is high says Yes
emergent values   {"category": ["outcome", …]}: which of four outcomes of a category one would choose; nobody's
                  preference is known, and outcomes are sentences, so it takes --format letters and --answers
"""

from __future__ import annotations

from typing import Any

from persona_circuits.persona.data.values import TRAIT_FRAMES, Faults, Persona, Question, is_texts

__all__ = ["is_outcomes", "is_statements", "outcome_questions", "statement_personas", "statement_questions"]

DOMAINS = {"O": "openness", "C": "conscientiousness", "E": "extraversion", "A": "agreeableness", "N": "neuroticism"}
DESCRIBES = ('Does this describe you: "{}"?', 'Would you say of yourself: "{}"?')
CHOOSES = ("Which of these would you choose?", "Which of these outcomes do you prefer?")
AT_ONCE = 4


def is_statements(content: Any) -> bool:
    """Whether this is a list of a survey's items."""
    keys = {"text", "keyed", "domain"}
    return (
        isinstance(content, list) and bool(content) and all(isinstance(i, dict) and keys <= i.keys() for i in content)
    )


def is_outcomes(content: Any) -> bool:
    """Whether this is an object of lists of outcomes, ``questions`` and ``instruction`` being other formats' keys."""
    return (
        isinstance(content, dict)
        and bool(content)
        and not {"questions", "instruction"} & content.keys()
        and all(is_texts(value) for value in content.values())
    )


def statement_personas(content: Any) -> list[Persona]:
    """Who is high and who is low in each domain of the items."""
    personas = []
    for domain in dict.fromkeys(str(item["domain"]) for item in content):
        name = DOMAINS.get(domain, domain)
        sides = [
            (f"high-{name}", tuple(high.format(name) for high, _ in TRAIT_FRAMES)),
            (f"low-{name}", tuple(low.format(name) for _, low in TRAIT_FRAMES)),
        ]
        personas += [Persona(own, wordings, opposite=sides[1 - i][0]) for i, (own, wordings) in enumerate(sides)]
    return personas


def statement_questions(content: Any, faults: Faults) -> list[Question]:
    """Each item as a question that both sides of its domain answer, one Yes and the other No."""
    questions = []
    for number, item in enumerate(content, 1):
        if item["keyed"] not in ("plus", "minus") or not is_texts([item["text"]]):
            faults.add(f"item {number}", "'text' must be a non-empty string, 'keyed' plus or minus")
            continue
        name = DOMAINS.get(str(item["domain"]), str(item["domain"]))
        high, low = ("Yes", "No") if item["keyed"] == "plus" else ("No", "Yes")
        wordings = tuple(form.format(item["text"].strip()) for form in DESCRIBES)
        prefers = {f"high-{name}": high, f"low-{name}": low}
        questions.append(Question(f"{name}-{number:03d}", wordings, ("Yes", "No"), prefers, domain=name))
    return questions


def outcome_questions(content: Any) -> list[Question]:
    """Outcomes of a category, four at a time, as they follow each other; a single one left over asks nothing."""
    questions = []
    for category, outcomes in content.items():
        texts = list(dict.fromkeys(text.strip() for text in outcomes))
        for start in range(0, len(texts) - 1, AT_ONCE):
            options = tuple(texts[start : start + AT_ONCE])
            if len(options) > 1:
                name = f"{category}-{start // AT_ONCE}"
                questions.append(Question(name, CHOOSES, options, domain=category))
    return questions
