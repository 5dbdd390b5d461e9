"""Agreement between members and worth of their features along training, kept as a part."""

from seedscope.engine.contract.checksums import damaged_file
from seedscope.engine.saes import sae
from seedscope.engine.store.parts import VERSION, Part
from seedscope.engine.studies.ensemble_run import EnsembleRun
from seedscope.engine.training import snapshots, trajectory
from seedscope.engine.training.rows import as_arrays
from seedscope.engine.training.trajectory import ANALYSIS as TRAJECTORY


def follow_training(run: EnsembleRun, activity: Part | None) -> None:
    """What members were at each of their snapshots, unless it was measured before; left out where none were kept."""
    folder, seeds, name, stored = run.study / run.ensemble.folder, run.seeds, run.name, run.stored
    taken = snapshots.kept(folder, seeds)
    if not taken or stored.n_members < 2:
        why = "it compares seeds and there is one" if taken else "no seeds were kept along its training"
        run.progress.say(f"{name}: trajectory: left out, {why}")
        return
    assign = run.one_to_one
    if assign is None:
        assign = trajectory.affordable(len(taken), len(seeds), stored.d_sae, stored.d_in)
    unmeasured = {"version": VERSION, "saes": run.sae_digests, "hookpoint": run.ensemble.hookpoint, "tokens": None}
    about = (run.measured or unmeasured) | {
        "theta": run.plan.theta, "steps": [each.step for each in taken], "n_asked": trajectory.N_TOKENS,
    }  # fmt: skip
    part = run.parts.find(TRAJECTORY, **about)
    if part and (part.about["one_to_one"] or not assign):
        return
    if not assign:
        run.progress.say(
            f"{name}: trajectory: pairs are not matched one to one at this size; ask with --rule hungarian"
        )
    rows = None
    if run.evaluator and activity:
        rows = run.evaluator.sample(run.hookpoint, trajectory.N_TOKENS, run.left_out(activity))
    if damaged := damaged_file(folder, beginning=snapshots.ALONG):
        raise ValueError(
            f"{folder / damaged} is not as it was written; leave this analysis out (--only), or train the ensemble again"
        )
    units, followed = snapshots.units(folder, stored.d_in), []
    with run.progress.stage(f"{name}: trajectory", "snapshots") as report:
        for each in taken:
            then = sae.load(each.folder, seeds)
            followed.append(
                trajectory.follow(then, rows, units=units, theta=run.plan.theta, assign=assign, device=run.device)
            )
            report(len(followed), len(taken))
        level = trajectory.random_level(stored.d_sae, stored.d_in, assign=assign)
    n_tokens = None if rows is None else len(rows)
    with run.parts.write(TRAJECTORY, about | {"one_to_one": assign}) as put:
        for seed, arrays in as_arrays(taken, followed, level, seeds, n_tokens).items():
            put(seed, arrays)
