"""The losses of the adversarial training, as pure functions.

Each is a sum over positions divided by a normalizer. Where a batch runs in micro-batches, because
memory is short or several processes share it, the normalizer of the whole batch is given: then the
losses of the micro-batches add up to the batch's, and so do their gradients.
"""

from __future__ import annotations

import math

import torch
from torch.nn import functional as F

from retouch.representations.divergence import kl_from_logprobs
from retouch.representations.logprobs import token_logprobs

Normalizer = float | torch.Tensor


def generator_loss(logits: torch.Tensor, normalizer: Normalizer | None = None) -> torch.Tensor:
    r"""The generator's adversarial loss: edited states should be classified as target states.

    $$L_{adv} = -\frac1n \sum_i \log \sigma(D(h_i))$$

    The generator's side of ARE's objective (Zhang et al. 2024) in the non-saturating form of
    Goodfellow et al. 2014.

    Args:
        logits: `[n]`, the discriminator's log-odds that a state is a target state.
        normalizer: the divisor of the sum (default: $n$).
    """
    return F.softplus(-logits).sum() / (len(logits) if normalizer is None else normalizer)


def domain_confusion_loss(
    logits: torch.Tensor, normalizer: Normalizer | None = None
) -> torch.Tensor:
    r"""The generator's loss where two groups should be indistinguishable.

    $$L_{adv} = -\frac1n \sum_i \tfrac12 \log \sigma(D(h_i)) + \tfrac12 \log \sigma(-D(h_i))$$

    Domain confusion (Tzeng et al. 2015, arXiv 1510.02192, equation 4).

    Args:
        logits: `[n]`, the discriminator's log-odds that a state is of the first group.
        normalizer: the divisor of the sum (default: $n$).
    """
    total = _even_odds_loss(logits).sum()
    return total / (len(logits) if normalizer is None else normalizer)


def _even_odds_loss(log_odds: torch.Tensor) -> torch.Tensor:
    """The cross-entropy of two equally likely classes under log-odds, elementwise."""
    return 0.5 * (F.softplus(-log_odds) + F.softplus(log_odds))


def discriminator_loss(
    target: torch.Tensor, nontarget: torch.Tensor, label_smoothing: float
) -> torch.Tensor:
    r"""The discriminator's loss, each class with half the weight, labels smoothed by $s$.

    $$L_D = \tfrac12 \, CE(\sigma(D(h^+)), 1 - s) + \tfrac12 \, CE(\sigma(D(h^-)), s)$$

    Args:
        target: `[n]` log-odds of target states.
        nontarget: `[m]` log-odds of the others.
        label_smoothing: $s$, below 0.5.
    """
    ones = torch.full_like(target, 1 - label_smoothing)
    zeros = torch.full_like(nontarget, label_smoothing)
    return 0.5 * F.binary_cross_entropy_with_logits(
        target, ones
    ) + 0.5 * F.binary_cross_entropy_with_logits(nontarget, zeros)


def relativistic_generator_loss(
    logits: torch.Tensor, reference: torch.Tensor, normalizer: Normalizer | None = None
) -> torch.Tensor:
    r"""Edited states should be classified as target states rather than their counterparts.

    $$L = -\frac1n \sum_i \log \sigma(D(h_i) - D(h^*_i))$$

    Source: Jolicoeur-Martineau 2018, arXiv 1807.00734, equation 7; as in R3GAN, arXiv 2501.05441.

    Args:
        logits: `[n]`, of edited states.
        reference: `[n]`, of their target counterparts.
        normalizer: the divisor of the sum (default: $n$).
    """
    return generator_loss(logits - reference, normalizer)


def relativistic_discriminator_loss(target: torch.Tensor, nontarget: torch.Tensor) -> torch.Tensor:
    r"""Target states should have higher log-odds than the others, pair by pair.

    Args:
        target: `[n]`, of target states.
        nontarget: `[n]`, of one other state for each.
    """
    return F.softplus(nontarget - target).mean()


def wasserstein_loss(
    logits: torch.Tensor, reference: torch.Tensor, normalizer: Normalizer | None = None
) -> torch.Tensor:
    r"""$-\frac1n \sum_i (D(h_i) - D(h^*_i))$; a smooth $D$ makes it a distance of distributions.

    Source: Arjovsky et al. 2017, arXiv 1701.07875. The arguments are those of
    `relativistic_generator_loss`.
    """
    total = (reference - logits).sum()
    return total / (len(logits) if normalizer is None else normalizer)


def feature_matching_loss(features: torch.Tensor, reference: torch.Tensor) -> torch.Tensor:
    r"""$\lVert \bar f(h) - \bar f(h^*) \rVert^2$, of the features `[n, size]` of a discriminator.

    Source: Salimans et al. 2016, arXiv 1606.03498, section 3.1.
    """
    return (features.mean(0) - reference.mean(0)).pow(2).sum()


def gradient_penalty(logits: torch.Tensor, states: torch.Tensor) -> torch.Tensor:
    r"""$\frac1n \sum_i \lVert \nabla_{h_i} D(h_i) \rVert^2$: R1 at target states, R2 at the others.

    Source: Mescheder et al. 2018, arXiv 1801.04406, equations 9 and 10.

    Args:
        logits: `[n]`, each a function of its own state.
        states: `[n, hidden]`, with gradients.
    """
    (gradient,) = torch.autograd.grad(logits.sum(), states, create_graph=True)
    return gradient.pow(2).sum(-1).mean()


def sft_loss(
    logits: torch.Tensor,
    tokens: torch.Tensor,
    weights: torch.Tensor | None = None,
    normalizer: Normalizer | None = None,
) -> torch.Tensor:
    r"""Weighted cross-entropy of response tokens, nats a token.

    $$L = -\frac{\sum_t w_t \log p(y_t | x, y_{<t})}{\sum_t w_t}$$

    Args:
        logits: `[n, vocabulary]` at the positions that predict a response token.
        tokens: `[n]` those tokens.
        weights: `[n]` (default: 1 each).
        normalizer: the divisor of the sum (default: $\sum_t w_t$).
    """
    losses = -token_logprobs(logits, tokens)
    if weights is None:
        return losses.sum() / (len(losses) if normalizer is None else normalizer)
    return (losses * weights).sum() / (weights.sum() if normalizer is None else normalizer)


def npo_loss(
    logprobs: torch.Tensor, reference: torch.Tensor, beta: float, normalizer: Normalizer
) -> torch.Tensor:
    r"""Negative preference optimisation: responses become less likely than under the base.

    $$L = \frac1N \sum_i \frac2\beta
        \log\left(1 + \left(\frac{p(y_i|x_i)}{p_{base}(y_i|x_i)}\right)^\beta\right)$$

    Its gradient vanishes as a response becomes unlikely, unlike that of an ascent on the
    cross-entropy. Source: Zhang et al. 2024, arXiv 2404.05868.

    Args:
        logprobs: log-probabilities `[n]` of whole responses, with gradients.
        reference: the same under the base model.
        beta: inverse temperature.
        normalizer: $N$, the number of tokens of all responses, so that the loss is in nats a token.
    """
    return (2 / beta) * F.softplus(beta * (logprobs - reference)).sum() / normalizer


def balance_loss(
    logits: torch.Tensor, reference: torch.Tensor, first: torch.Tensor, second: torch.Tensor
) -> torch.Tensor:
    r"""How far two choices are from being equally likely, all else as in the base; `[n]`, in nats.

    $$L = KL(\tilde p \,\|\, q) + KL\left(\tfrac12 \,\middle\|\, \frac{q_a}{q_a + q_b}\right)$$

    $q$ is the edited model's prediction, and $\tilde p$ the base's, with the mean of their two
    probabilities for both choices $a$ and $b$. The second term does not depend on how likely the
    two are together.

    Args:
        logits: `[n, vocabulary]`, with gradients.
        reference: $\log \tilde p$, `[n, vocabulary]`, finite.
        first: the tokens `[n]` of the choice $a$.
        second: those of the choice $b$.
    """
    kl = kl_from_logprobs(reference, logits)
    pair = torch.stack([first.to(logits.device), second], 1)
    chosen = logits.gather(1, pair).float()
    return kl + _even_odds_loss(chosen[:, 0] - chosen[:, 1]) - math.log(2)


def normalized_mse_loss(
    states: torch.Tensor,
    reference: torch.Tensor,
    weights: torch.Tensor | None = None,
    normalizer: Normalizer | None = None,
) -> torch.Tensor:
    r"""Squared distance of states to reference states, relative to the references' mean square.

    $$L = \frac{\sum_i w_i \lVert h_i - h_i^* \rVert^2}{\sum_i w_i \lVert h_i^* \rVert^2}$$

    Used both to match source runs to their target counterparts and to keep the retain set at the
    base model's states. In float32, for states of any dtype.

    Args:
        states: `[n, hidden]`, with gradients.
        reference: `[n, hidden]`, constant.
        weights: `[n]` (default: 1 each).
        normalizer: the divisor of the sum (default: `squared_norm` of the reference).
    """
    error = (states.float() - reference.float()).pow(2).sum(-1)
    if weights is not None:
        error = error * weights
    return error.sum() / (squared_norm(reference, weights) if normalizer is None else normalizer)


def squared_norm(states: torch.Tensor, weights: torch.Tensor | None = None) -> torch.Tensor:
    r"""$\sum_i w_i \lVert h_i \rVert^2$ of states `[n, hidden]`, a scalar above 0."""
    norm = states.float().pow(2).sum(-1)
    return (norm if weights is None else norm * weights).sum().clamp_min(1e-12)
