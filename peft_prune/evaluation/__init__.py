"""What edits did to a model, measured on its own outputs."""

from .abilities import EXTRACTORS, STOPS, final_number, score_ability, whole_answer
from .answers import exactly_matches, has_label, rouge_scores, squad_normalized
from .editing import RequestAnswers, request_answers, request_outcomes, require_answerable, score_requests
from .estimates import Mean, Proportion
from .evaluate import Evaluation, evaluate
from .facts import Fact, exclude_subjects, known_facts, load_facts, recall, recalled
from .fluency import ngram_entropy, request_entropies
from .harness import harness_figures, harness_model
from .intervals import bootstrap_interval, unvaried_interval, wilson_interval
from .kinds import KINDS, FigureKind, kind_of
from .merging import MergeReport, merge_report
from .moments import ImmediateScores
from .perplexity import load_texts, perplexity, perplexity_figure, perplexity_of, text_losses
from .scores import difference, differences, harmonic_score
from .subjects import without_subjects
from .table import comparison_table, signed
from .tasks import SCORERS, Ability, AbilityItem, ability_outcomes, load_ability, measure_ability
from .token_probabilities import next_tokens, token_log_probabilities

__all__ = [
    "EXTRACTORS",
    "KINDS",
    "SCORERS",
    "STOPS",
    "Ability",
    "AbilityItem",
    "Evaluation",
    "Fact",
    "FigureKind",
    "ImmediateScores",
    "Mean",
    "MergeReport",
    "Proportion",
    "RequestAnswers",
    "ability_outcomes",
    "bootstrap_interval",
    "comparison_table",
    "difference",
    "differences",
    "evaluate",
    "exactly_matches",
    "exclude_subjects",
    "final_number",
    "harmonic_score",
    "harness_figures",
    "harness_model",
    "has_label",
    "kind_of",
    "known_facts",
    "load_ability",
    "load_facts",
    "load_texts",
    "measure_ability",
    "merge_report",
    "next_tokens",
    "ngram_entropy",
    "perplexity",
    "perplexity_figure",
    "perplexity_of",
    "recall",
    "recalled",
    "request_answers",
    "request_entropies",
    "request_outcomes",
    "require_answerable",
    "rouge_scores",
    "score_ability",
    "score_requests",
    "signed",
    "squad_normalized",
    "text_losses",
    "token_log_probabilities",
    "unvaried_interval",
    "whole_answer",
    "wilson_interval",
    "without_subjects",
]
