"""Fits the sign-constrained logistic regression: every feature may only count the way its meaning says.

A text counts through its most telling window, which is not known beforehand, so fitting and choosing take turns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, vstack

from casemate.guard.classes import FEATURES, allowed_signs
from casemate.guard.features import find_facts, mask_features, windows_of
from casemate.guard.grammar import Lexicon
from casemate.guard.normalize import normalize
from casemate.guard.sentences import cut_sentences, read_text

ROUNDS = 4
WEIGHT_SUM = 2000.0
SIGNS = np.array(allowed_signs())
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


@dataclass(frozen=True)
class Fitter:
    """What stays the same between fits: the texts, their labels, how much each counts, and the inverse L2 penalty."""

    bag: Bag
    labels: np.ndarray
    importance: np.ndarray
    strength: float

    def fit(self, chosen: np.ndarray) -> tuple[np.ndarray, float]:
        """Return (weights, bias) fitted to the texts *chosen*."""
        bag = self.bag
        clean, attacks = chosen[self.labels[chosen] == 0], chosen[self.labels[chosen] == 1]
        sizes = bag.offsets[clean + 1] - bag.offsets[clean]
        clean_rows = np.concatenate([np.arange(bag.offsets[i], bag.offsets[i + 1]) for i in clean])
        clean_mass = np.repeat(self.importance[clean] / np.sqrt(sizes), sizes)
        attack_mass = self.importance[attacks]
        mass = np.r_[clean_mass / clean_mass.sum(), attack_mass / attack_mass.sum()] * WEIGHT_SUM
        sides = np.r_[-np.ones(len(clean_rows)), np.ones(len(attacks))]
        telling = np.asarray(bag.windows.sum(1)).ravel()
        weights, bias = np.zeros(FEATURES), 0.0
        for _ in range(ROUNDS):
            best = [bag.offsets[i] + int(np.argmax(telling[bag.offsets[i] : bag.offsets[i + 1]])) for i in attacks]
            rows = vstack([bag.windows[clean_rows], bag.windows[best]]).tocsr()
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
