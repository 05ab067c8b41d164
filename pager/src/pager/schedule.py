"""Learning-rate schedule of the released training."""


def exponential_decay_factor(
    step: int, total_steps: int, warmup_ratio: float, final: float = 0.01
) -> float:
    """Factor on the base rate: linear warm-up, then exponential decay to `final`.

    The warm-up takes ``int(total*ratio)`` steps; the decay is paced over
    ``int(total*(1-ratio))`` steps and reaches `final` at `total_steps`.

    >>> [round(exponential_decay_factor(n, 1000, 0.03), 6) for n in (0, 15, 30, 500, 1000)]
    [0.0, 0.5, 1.0, 0.107381, 0.01]
    """
    warmup = int(total_steps * warmup_ratio)
    decay = int(total_steps * (1 - warmup_ratio))
    if step < warmup:
        return step / warmup
    if step >= total_steps or decay == 0:
        return final
    return final ** ((step - warmup) / decay)
