"""The command line ``nacme``. Each command imports what it needs, so that ``--help`` answers at once."""

from __future__ import annotations

from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

import nacme
from nacme.output import report_errors

app = typer.Typer(
    name="nacme",
    help="Choose domain-generalization checkpoints by neuron activation coverage, and study the choice.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    # flags are spelled as DomainBed spells its own, --output_dir; --output-dir is accepted, too
    context_settings={"token_normalize_func": lambda name: name.replace("-", "_")},
)


#: Of commands whose flags another parser reads.
_OWN_FLAGS: dict[str, Any] = {
    "add_help_option": False,
    "context_settings": {"ignore_unknown_options": True, "allow_extra_args": True},
}


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"nacme {nacme.__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Set up what every command shares."""


class Format(str, Enum):
    """How a result is printed."""

    table = "table"
    csv = "csv"
    json = "json"


class Per(str, Enum):
    """Among what ``select`` chooses."""

    run = "run"
    sweep = "sweep"


class Targets(str, Enum):
    """What is looked at where runs have several test envs."""

    each = "each"
    mean = "mean"


@app.command("demo")
def demo_command(
    out: Annotated[Path, typer.Option(help="Where the sweep and the report go.")] = Path("demo"),
    quick: Annotated[bool, typer.Option("--quick", help="A few short runs, in under 40 seconds.")] = False,
) -> None:
    """Run the whole journey on the embedded testbed: sweep, record, rank, correlate, report."""
    from domainbed_plugins import demo

    demo.run(out, quick)


@app.command("train", **_OWN_FLAGS)
def train_command(context: typer.Context) -> None:
    """Train with DomainBed's own flags, recording coverage at every checkpoint (nacme train --help)."""
    from domainbed_plugins import train

    train.main(context.args)


@app.command("score", **_OWN_FLAGS)
def score_command(context: typer.Context) -> None:
    """Measure checkpoints that any DomainBed saved (nacme score --help)."""
    from domainbed_plugins import score

    score.main(context.args)


@app.command("average", **_OWN_FLAGS)
def average_command(context: typer.Context) -> None:
    """Make candidates from saved checkpoints: ensembles, soups, averages along runs (nacme average --help)."""
    from domainbed_plugins import average

    average.main(context.args)


@app.command("detect", **_OWN_FLAGS)
def detect_command(context: typer.Context) -> None:
    """Ask detectors whether checkpoints notice unseen domains (nacme detect --help)."""
    from domainbed_plugins import detect

    detect.main(context.args)


sweep_app = typer.Typer(help="Train the runs of a sweep, and see how far they are.", no_args_is_help=True)
app.add_typer(sweep_app, name="sweep")


Spec = Annotated[str, typer.Argument(metavar="SPEC", help="A YAML file, or the name of a shipped one: demo.")]
SweepOutput = Annotated[
    Path, typer.Option("--output_dir", help="Of the sweep: a directory for each run goes there.")
]
DataDir = Annotated[str | None, typer.Option("--data_dir", help="Where DomainBed's data sets are.")]
DomainBedRoot = Annotated[
    str | None, typer.Option("--domainbed", metavar="PATH", help="A DomainBed clone; default: DOMAINBED_ROOT.")
]


@sweep_app.command("run")
def sweep_run_command(
    spec: Spec,
    output_dir: SweepOutput,
    data_dir: DataDir = None,
    launcher: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="local, slurm, debug (one after another in this process), or an installed one."
        ),
    ] = "local",
    jobs: Annotated[int | None, typer.Option(min=1, help="Runs at a time; default: one per GPU, or core.")] = None,
    wait: Annotated[
        bool, typer.Option("--wait/--no_wait", help="Follow a scheduler's runs until they end.")
    ] = True,
    domainbed: DomainBedRoot = None,
) -> None:
    """Train what is missing; running it again continues."""
    from domainbed_plugins.sweep import commands as sweep_commands

    sweep_commands.run_command(spec, output_dir, data_dir, domainbed, launcher, jobs, wait)


@sweep_app.command("plan")
def sweep_plan_command(
    spec: Spec,
    output_dir: Annotated[Path | None, typer.Option("--output_dir", help="To count what is done already.")] = None,
    data_dir: DataDir = None,
    domainbed: DomainBedRoot = None,
    form: Annotated[Format, typer.Option("--format", help="How the result is printed.")] = Format.table,
) -> None:
    """Say how many runs, steps, checkpoints, bytes and hours a sweep is."""
    from domainbed_plugins.sweep import commands as sweep_commands

    sweep_commands.plan_command(spec, output_dir, data_dir, domainbed, form.value)


@sweep_app.command("status")
def sweep_status_command(
    spec: Spec,
    output_dir: SweepOutput,
    data_dir: DataDir = None,
    domainbed: DomainBedRoot = None,
    form: Annotated[Format, typer.Option("--format", help="How the result is printed.")] = Format.table,
) -> None:
    """Tell which runs are not launched, queued, running, interrupted, failed or done."""
    from domainbed_plugins.sweep import commands as sweep_commands

    sweep_commands.status_command(spec, output_dir, data_dir, domainbed, form.value)


@sweep_app.command("delete")
def sweep_delete_command(
    spec: Spec,
    output_dir: SweepOutput,
    data_dir: DataDir = None,
    domainbed: DomainBedRoot = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete the directories of failed and interrupted runs; what is done or running stays."""
    from domainbed_plugins.sweep import commands as sweep_commands

    sweep_commands.delete_command(spec, output_dir, data_dir, domainbed, yes)


SweepPath = Annotated[Path, typer.Argument(metavar="SWEEP", help="A sweep or run directory, or a table.")]
CriterionNames = Annotated[
    list[str] | None,
    typer.Option("--criterion", metavar="NAME", help="A criterion, or several with commas. Can be repeated."),
]
CriteriaModules = Annotated[
    list[str] | None,
    typer.Option("--criteria_module", metavar="MODULE", help="A module or .py file that registers criteria."),
]
FormatOption = Annotated[Format, typer.Option("--format", help="How the result is printed.")]
WideOption = Annotated[bool, typer.Option("--wide", help="Every column, and every note by itself.")]
StrictOption = Annotated[
    bool, typer.Option("--strict", help="Refuse a sweep with any record that cannot be read.")
]
TargetsOption = Annotated[
    Targets | None,
    typer.Option(
        "--targets",
        help="Of runs with several test envs: each by itself, or their mean accuracy, one observation a run.",
    ),
]

CandidatesOption = Annotated[
    list[str] | None,
    typer.Option(
        "--candidates",
        metavar="KIND",
        help="raw, sma, ema, soup, ...: what may be chosen, several with commas; default: all that are recorded. "
        "A correlation is among candidates of one kind; default: raw.",
    ),
]


@app.command("select")
def select_command(
    sweep: SweepPath,
    criterion: CriterionNames = None,
    per: Annotated[Per, typer.Option(help="Choose within each run, or across a sweep's runs.")] = Per.sweep,
    form: FormatOption = Format.table,
    targets: TargetsOption = None,
    candidates: CandidatesOption = None,
    strict: StrictOption = False,
    criteria_module: CriteriaModules = None,
    wide: WideOption = False,
) -> None:
    """Choose a checkpoint per (dataset, algorithm, test env, trial) and criterion."""
    from nacme import commands as study

    study.run_select(
        sweep,
        criterion,
        per.value,
        form.value,
        targets=targets.value if targets else None,
        candidates=candidates,
        strict=strict,
        modules=criteria_module,
        wide=wide,
    )


@app.command("correlate")
def correlate_command(
    sweep: SweepPath,
    criterion: CriterionNames = None,
    population: Annotated[Per, typer.Option(help="Rank within each run, or across a sweep's runs.")] = Per.run,
    form: FormatOption = Format.table,
    include_step0: Annotated[
        bool, typer.Option("--include_step0", help="Count the untrained network as a checkpoint.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap over runs.")] = 0,
    pool_algorithms: Annotated[
        bool, typer.Option("--pool_algorithms", help="One row for all algorithms together.")
    ] = False,
    targets: TargetsOption = None,
    authors_way: Annotated[
        bool,
        typer.Option("--authors_way", help="The table of NAC's authors: their rank formula, ours beside it."),
    ] = False,
    candidates: CandidatesOption = None,
    strict: StrictOption = False,
    criteria_module: CriteriaModules = None,
    wide: WideOption = False,
) -> None:
    """Correlate criteria with test accuracy, per (dataset, algorithm, test env)."""
    from nacme import commands as study

    study.run_correlate(
        sweep,
        criterion,
        population.value,
        form.value,
        include_step0=include_step0,
        seed=seed,
        pool_algorithms=pool_algorithms,
        targets=targets.value if targets else None,
        authors_way=authors_way,
        candidates=candidates,
        strict=strict,
        modules=criteria_module,
        wide=wide,
    )


@app.command("report")
def report_command(
    sweep: SweepPath,
    out: Annotated[Path, typer.Option(metavar="FILE", help="Where the page goes; -: to standard output.")] = Path(
        "report.html"
    ),
    export: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Also every figure as PNG and PDF, every table as CSV and LaTeX."),
    ] = None,
    criterion: CriterionNames = None,
    include_step0: Annotated[
        bool, typer.Option("--include_step0", help="Count the untrained network as a checkpoint.")
    ] = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the bootstrap over runs.")] = 0,
    targets: TargetsOption = None,
    strict: StrictOption = False,
    criteria_module: CriteriaModules = None,
) -> None:
    """Write a sweep's tables and figures as one self-contained page."""
    from nacme import commands as study

    study.run_report(
        sweep,
        out,
        criterion,
        export=export,
        include_step0=include_step0,
        seed=seed,
        targets=targets.value if targets else None,
        strict=strict,
        modules=criteria_module,
    )


@app.command("recommend")
def recommend_command(
    sweep: SweepPath,
    form: FormatOption = Format.table,
    one_network: Annotated[
        bool, typer.Option("--one_network/--any", help="Leave ensembles out, or let them in.")
    ] = True,
    targets: TargetsOption = None,
) -> None:
    """Say which candidate to ship per (data set, test env), why, and how sure that is."""
    from nacme import commands as study

    study.run_recommend(sweep, form.value, one_network=one_network, targets=targets.value if targets else None)


@app.command("criteria")
def criteria_command(form: FormatOption = Format.table, criteria_module: CriteriaModules = None) -> None:
    """List every criterion: direction, data it sees, cost, source."""
    from nacme import commands as study

    study.run_criteria(form.value, modules=criteria_module)


@app.command("prune", context_settings={"allow_extra_args": True})
def prune_command(
    context: typer.Context,
    sweep: SweepPath,
    keep: Annotated[
        list[str] | None,
        typer.Option("--keep", metavar="WHAT", help="best:CRITERION or last; several with spaces."),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete; otherwise only say what would go.")] = False,
) -> None:
    """Delete the checkpoints of finished runs that no kept criterion chooses."""
    from domainbed_plugins.runs.keep import prune

    prune(sweep, [*(keep or ()), *context.args], yes=yes)


@app.command("export")
def export_command(
    named: Annotated[
        Path,
        typer.Argument(metavar="RUN", help="A run's directory, or a checkpoint as select and recommend name it."),
    ],
    step: Annotated[
        int | None, typer.Argument(metavar="STEP", help="Of the checkpoint in a run's directory.")
    ] = None,
    *,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Where model.pt and card.json go.")],
    data_dir: DataDir = None,
    domainbed: DomainBedRoot = None,
) -> None:
    """Write a checkpoint, an average or an ensemble, and a JSON card."""
    from domainbed_plugins.averaging.export import export_named

    typer.echo(export_named(named, step, out, data_dir, domainbed))


def main() -> None:
    """Enter the command line."""
    report_errors(app)


if __name__ == "__main__":
    main()
