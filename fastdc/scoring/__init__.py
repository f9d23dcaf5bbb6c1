"""How good are the answers? Accuracy, classes, calibration, groups, and agreement with the full run.

    result = clf.classify(images)
    print(score_of(result, labels))                                      the page of `fastdc score`
    print(agreement(result, images, clf.settings()))                     is the race's promise kept on these images?
    score(labels, probabilities, class_names)                            of any classifier

Modules: `measures` (the formulas), `bootstrap` and `intervals` (how sure they are), `positive` (one class against the
rest), `refusal` (the least certain answers left out), `agreement` (race and full run), `rivals` (other classifiers),
`mistakes` (examples), `numbers` and `score` (the result), `scored` (makes it), `text_page`, `html_page` and `pictures`
(as people read it).
"""

from fastdc.scoring.agreement import CHECKED, Agreement, agreement, check_count, full_runs, raced_of, sampled
from fastdc.scoring.measures import BINS, ClassMeasures, Reliability
from fastdc.scoring.mistakes import Mistake, mistakes_of
from fastdc.scoring.numbers import Rival, ScoreNumbers
from fastdc.scoring.positive import Operating, PositiveMeasures
from fastdc.scoring.refusal import Refusal
from fastdc.scoring.rivals import rival_of
from fastdc.scoring.score import Score
from fastdc.scoring.scored import MOST_GROUPS, check_groups, operating, probability_notes, score, score_of

__all__ = [
    "BINS",
    "CHECKED",
    "MOST_GROUPS",
    "Agreement",
    "ClassMeasures",
    "Mistake",
    "Operating",
    "PositiveMeasures",
    "Refusal",
    "Reliability",
    "Rival",
    "Score",
    "ScoreNumbers",
    "agreement",
    "check_count",
    "check_groups",
    "full_runs",
    "mistakes_of",
    "operating",
    "probability_notes",
    "raced_of",
    "rival_of",
    "sampled",
    "score",
    "score_of",
]
