"""A plan for people: an aligned table of what a step needs, what bounds it, and what to expect."""

from mixformer_jax.planning.record import Plan, gigabytes


def plan_lines(plan: Plan) -> list[tuple[str, str]]:
    """Names and values, an empty name where a line goes on with the one before."""
    memory, chip = plan.memory, plan.topology.chip
    mesh = " x ".join(f"{axis} {size}" for axis, size in plan.mesh.items())
    settings = plan.settings
    how = [settings["dtype"], "activations recomputed" if settings["remat"] else "activations kept"]
    how += [f"in {settings['accumulate']} parts"] if settings["accumulate"] > 1 else []
    per_chip = plan.global_batch / plan.topology.size
    lines = [
        ("model", f"{plan.model}, {', '.join(how)}"),
        ("topology", f"{plan.topology.name}, {plan.topology.size} chips, mesh {mesh}"),
        ("batch", f"{plan.global_batch} samples, {per_chip:g} a chip"),
        ("memory", f"{gigabytes(memory.total)} a chip of {gigabytes(memory.limit)} ({_share(plan)})"),
    ]
    parts = {
        "parameters": memory.parameters,
        "optimizer": memory.optimizer,
        "other state": memory.rest,
        "batch": memory.batch,
        "activations, gradients, scratch": memory.temporaries,
        "program": memory.code,
    }
    lines += [("", f"  {gigabytes(size):>9}  {name}") for name, size in parts.items() if size]
    recomputed = plan.flops / plan.model_flops - 1
    beside = f"{recomputed:+.0%} to the model's {plan.model_flops / 1e12:.2f} T"
    lines += [
        ("FLOPs", f"{plan.flops / 1e12:.2f} T a chip and step, {beside}"),
        ("bytes", f"{gigabytes(plan.hbm_bytes)} with HBM; {gigabytes(plan.accessed_bytes)} accessed, as XLA counts"),
    ]
    for place, (kind, (count, size, sent)) in enumerate(plan.collectives.items()):
        name = "" if place else "collectives"
        lines.append((name, f"{count} {kind} of {gigabytes(size)} in all; a chip sends {gigabytes(sent)}"))
    if not plan.collectives:
        lines.append(("collectives", "none"))
    peaks = {
        "compute": f"{plan.peak_flops / 1e12:g} TFLOP/s",
        "memory": f"{chip.hbm_bandwidth / 1e9:g} GB/s",
        "network": f"{plan.topology.bandwidth() / 1e9:g} GB/s out of a chip",
    }
    for place, (name, seconds) in enumerate(plan.bounds_s.items()):
        limits = "  <- limits" if name == plan.limited_by else ""
        lines.append(("" if place else "at least", f"{_ms(seconds)} {name} at {peaks[name]}{limits}"))
    ceiling = "no ceiling, see the note" if settings["quick"] else "the ceiling"
    lines.append(("", f"{_speed(plan, plan.step_s)}: {ceiling}"))
    basis = "XLA's estimate of computing, then the network" if plan.estimate_s else "the three one after the other"
    lines.append(("expected", f"{_ms(plan.expected_s)} a step: {basis}"))
    lines.append(("", _speed(plan, plan.expected_s)))
    lines.append(("took", ", ".join(f"{name} {seconds:.0f} s" for name, seconds in plan.seconds.items())))
    lines += [("note", note) for note in plan.notes]
    return lines


def _share(plan: Plan) -> str:
    return f"{plan.memory.total / plan.memory.limit:.0%}"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms"


def _speed(plan: Plan, seconds: float) -> str:
    return f"{plan.global_batch / seconds:,.0f} samples/s, MFU {plan.mfu(seconds):.1%}"
