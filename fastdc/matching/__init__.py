"""Which text describes an image? Diffusion classifiers beside CLIP, SigLIP and ViLT, on candidates of each image's own.

    trials = Trials.of(files, [["a red cube", "a blue cube"], ...])
    matched = matcher.match(trials)            any model: scores, answers, cost
    read_layout(folder)                        the trials of the compositional evaluation, by task, split and setting
    compose([Entrant.of(matcher, cells)])      several models on the same trials, as tables

Modules: `trials` (the question), `matched` (the answer), `question_tables` (tables of images and texts),
`diffusion_matcher` (`text_conditions`, `place_tables` and `run_facts` are its parts), `clip_matcher` and `vilt_matcher`
(`pictures` and `collecting` are theirs), `evidence` (scores that compare images), `pairs` (Winoground's scores),
`retrieval`, `level_analysis` (which noise levels tell texts apart), `cells`, `layout` and `layout_folders` (reading a
data set), `kinds` (of errors), `composition`, `task_races` and `kept` (running models), `comparison`,
`comparison_numbers` and `comparison_tables` (several models on the same images), `released` (another scoring).
"""

from fastdc.matching.cells import Cell
from fastdc.matching.clip_matcher import ClipMatcher
from fastdc.matching.comparison import Comparison
from fastdc.matching.comparison_numbers import Answered, CellScore, PairedTest, holm
from fastdc.matching.composition import Entrant, OnComposed, compose
from fastdc.matching.diffusion_matcher import DiffusionMatcher
from fastdc.matching.evidence import evidence
from fastdc.matching.kinds import kinds_of
from fastdc.matching.layout import RELEASED, read_layout
from fastdc.matching.layout_folders import EVALUATED, SETTINGS, SPLITS
from fastdc.matching.level_analysis import LevelAnalysis, level_analysis
from fastdc.matching.matched import AbstractMatcher, Matched, OnFinished, OnMatched, last_best
from fastdc.matching.pairs import PairScores, pair_trials, score_pairs
from fastdc.matching.question_tables import pairs_table, read_pairs, read_rankings, read_trials, unread_columns
from fastdc.matching.retrieval import Retrieval, retrieve
from fastdc.matching.similarity import CaptionSimilarity, caption_pairs, caption_similarity
from fastdc.matching.task_races import CALIBRATED_ON, TaskRaces
from fastdc.matching.text_conditions import check_texts
from fastdc.matching.trials import RIGHT, Trials
from fastdc.matching.vilt_matcher import ViltMatcher

__all__ = [
    "CALIBRATED_ON",
    "EVALUATED",
    "RELEASED",
    "RIGHT",
    "SETTINGS",
    "SPLITS",
    "AbstractMatcher",
    "Answered",
    "CaptionSimilarity",
    "Cell",
    "CellScore",
    "ClipMatcher",
    "Comparison",
    "DiffusionMatcher",
    "Entrant",
    "LevelAnalysis",
    "Matched",
    "OnComposed",
    "OnFinished",
    "OnMatched",
    "PairScores",
    "PairedTest",
    "Retrieval",
    "TaskRaces",
    "Trials",
    "ViltMatcher",
    "caption_pairs",
    "caption_similarity",
    "check_texts",
    "compose",
    "evidence",
    "holm",
    "kinds_of",
    "last_best",
    "level_analysis",
    "pair_trials",
    "pairs_table",
    "read_layout",
    "read_pairs",
    "read_rankings",
    "read_trials",
    "retrieve",
    "score_pairs",
    "unread_columns",
]
