"""Fits the sign-constrained logistic regression: every feature may only count the way its meaning says.

A text counts through its most telling window, which is not known beforehand, so fitting and choosing take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, vstack

from casemate.guard.classes import FEATURES, NUMBER, SIZE, allowed_signs, feature_classes
from casemate.guard.features import find_facts, mask_features, windows_of
from casemate.guard.grammar import Lexicon
from casemate.guard.normalize import normalize
from casemate.guard.sentences import cut_sentences, read_text

ROUNDS = 4
WEIGHT_SUM = 2000.0
SIGNS = np.array(allowed_signs())
DROPPED = 0.3
THIN_SEED = 7
_CLASSES_OF = [[NUMBER[name] for name in feature_classes(number)] for number in range(FEATURES)]
FIRST_CLASS = np.array([classes[0] for classes in _CLASSES_OF])
SECOND_CLASS = np.array([classes[-1] for classes in _CLASSES_OF])
WANTED = bytes(int(sign != 0) for sign in SIGNS)


@dataclass(frozen=True)
class Bag:
    """The windows of many texts: `windows` are rows of features, text i owns rows offsets[i] to offsets[i + 1]."""

    windows: csr_matrix
    offsets: np.ndarray

    def best(self, weights: np.ndarray, bias: float) -> np.ndarray:
        """Return the highest window score of each text."""
        return np.maximum.reduceat(self.windows @ weights + bias, self.offsets[:-1])


def windows_of_text(text: str, lexicon: Lexicon) -> list[list[int]]:
    """Return the distinct windows of *text*, each as a sorted list of feature numbers."""
    facts = find_facts(cut_sentences(read_text(normalize(text).text, lexicon).entries), WANTED)
    found = {tuple(sorted({*mask_features(window.mask), *window.near})) for window in windows_of(facts)}
    return [[number for number in features if SIGNS[number]] for features in sorted(found)] or [[]]


def make_bag(texts: Sequence[str], lexicon: Lexicon) -> Bag:
    """Turn *texts* into their windows."""
    columns: list[int] = []
    pointers, offsets = [0], [0]
    for text in texts:
        for features in windows_of_text(text, lexicon):
            columns += features
            pointers.append(len(columns))
        offsets.append(len(pointers) - 1)
    values = np.ones(len(columns), np.float32)
    shape = (len(pointers) - 1, FEATURES)
    return Bag(csr_matrix((values, np.array(columns, np.int32), np.array(pointers)), shape=shape), np.array(offsets))


def thinned(windows: csr_matrix) -> csr_matrix:
    """Return *windows* as sparser languages would show them: each row without some of its classes.

    English lexicons know most of a sentence's words, others a few. Without this, the weight of "ignore" beside
    "instructions" would drain into the many words around them that only English has.
    """
    draw = np.random.default_rng(THIN_SEED)
    thin = windows.tocsr(copy=True)
    for row in range(thin.shape[0]):
        kept = draw.random(SIZE) > DROPPED
        span = slice(thin.indptr[row], thin.indptr[row + 1])
        columns = thin.indices[span]
        thin.data[span] = kept[FIRST_CLASS[columns]] & kept[SECOND_CLASS[columns]]
    thin.eliminate_zeros()
    return thin


@dataclass(frozen=True)
class Fitter:
    """What stays the same between fits: the texts, their labels, how much each counts, the inverse L2 penalty."""

    bag: Bag
    labels: np.ndarray
    importance: np.ndarray
    strength: float
    thin: float  # how much of the attacks' mass their thinned copies carry

    def fit(self, chosen: np.ndarray) -> tuple[np.ndarray, float]:
        """Return (weights, bias) fitted to the texts *chosen*."""
        bag = self.bag
        clean, attacks = chosen[self.labels[chosen] == 0], chosen[self.labels[chosen] == 1]
        sizes = bag.offsets[clean + 1] - bag.offsets[clean]
        clean_rows = np.concatenate([np.arange(bag.offsets[i], bag.offsets[i + 1]) for i in clean])
        clean_mass = np.repeat(self.importance[clean] / np.sqrt(sizes), sizes)
        attack_mass = self.importance[attacks]
        attack_mass = attack_mass / attack_mass.sum()
        mass = np.r_[clean_mass / clean_mass.sum(), attack_mass * (1 - self.thin), attack_mass * self.thin] * WEIGHT_SUM
        sides = np.r_[-np.ones(len(clean_rows)), np.ones(2 * len(attacks))]
        telling = np.asarray(bag.windows.sum(1)).ravel()
        weights, bias = np.zeros(FEATURES), 0.0
        for _ in range(ROUNDS):
            best = [bag.offsets[i] + int(np.argmax(telling[bag.offsets[i] : bag.offsets[i + 1]])) for i in attacks]
            rows = vstack([bag.windows[clean_rows], bag.windows[best], thinned(bag.windows[best])]).tocsr()
            weights, bias = self._solve(rows, (sides, mass), (weights, bias))
            telling = bag.windows @ weights + bias
        return weights, bias

    def _solve(
        self, rows: csr_matrix, targets: tuple[np.ndarray, np.ndarray], start: tuple[np.ndarray, float]
    ) -> tuple[np.ndarray, float]:
        """Minimise the penalised loss from *start*; *targets* are each row's side (-1, 1) and mass."""
        sides, mass = targets
        used = np.flatnonzero((SIGNS != 0) & (np.asarray(rows.sum(0)).ravel() > 0))
        matrix = rows[:, used].tocsr()
        transposed = matrix.T.tocsr()

        def loss(point: np.ndarray) -> tuple[float, np.ndarray]:
            weights, bias = point[:-1], point[-1]
            margin = sides * (matrix @ weights + bias)
            pull = -sides * mass / (1 + np.exp(np.clip(margin, -50, 50)))
            value = (mass * np.logaddexp(0, -margin)).sum() + (weights @ weights) / (2 * self.strength)
            return value, np.r_[transposed @ pull + weights / self.strength, pull.sum()]

        bounds = [(0, None) if SIGNS[number] > 0 else (None, 0) for number in used] + [(None, None)]
        first = np.r_[start[0][used], start[1]]
        found = minimize(loss, first, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": 300})
        full = np.zeros(FEATURES)
        full[used] = found.x[:-1]
        return full, float(found.x[-1])
