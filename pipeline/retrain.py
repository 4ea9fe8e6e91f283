"""A hospital site retrains: from a released model and a folder of studies to a better one that was proven not worse.

The same command goes on wherever it was stopped, also by kill -9, and says its verdict again once it has one.
"""

from __future__ import annotations

from contextlib import suppress

from pipeline import report_gate, retrain_plan
from pipeline.errors import user_error
from pipeline.gate_rule import Rule, read_rule
from pipeline.retrain_plan import Plan
from pipeline.retrain_record import RetrainRecord
from pipeline.retrain_steps import Hands, Steps
from pipeline.retrain_story import Story, locked, now

BEGAN = "began"
"""Key of the record: what the command was given at first."""

REPORT = "report.html"


def retrain(plan: Plan, hands: Hands) -> RetrainRecord:
    """Retrain, or go on with it, or give the verdict that was reached before.

    Args:
        plan: what the command was given.
        hands: what does the work.

    Returns:
        The record, with a verdict.

    Raises:
        InputError: wrong use, a release that cannot be trusted, or a folder that began with other arguments.
        DataError: errors in the data, or a step that could not be finished.
        KeyboardInterrupt: it was stopped.
    """
    retrain_plan.check(plan)
    rule = read_rule(plan.rule)
    with locked(plan.out, hands.say) as lock:
        story = Story(plan.out, hands.say)
        _begin(plan, story, rule)
        try:
            _finish(story, Steps(plan, hands, story, rule, lock))
        except Exception as error:
            mistake = user_error(error)
            if mistake is None:
                raise
            if not story.ended:
                story.stop(mistake)
            with suppress(OSError):  # say a full disk, which is what it stops for
                _report(story)
            raise mistake from error
        _report(story)
        return story.record


def _begin(plan: Plan, story: Story, rule: Rule) -> None:
    """Fix the rule, or compare everything with what it was begun with; before the data are divided both may change.

    How it is trained may change until the training has begun: a wrong `--frozen` shows only there.
    """
    settings = retrain_plan.began(plan, rule)
    if story.ended or story.done("split"):
        trained = story.ended or (plan.new_weights.with_name("last.pt")).is_file()
        fixed = {key: value for key, value in settings.items() if trained or key not in ("overrides", "hours")}
        retrain_plan.refuse_if_changed(story.about[BEGAN], fixed, plan.out)
        if not trained:
            story.about[BEGAN] = settings
            story.save()
        return
    before = story.about.get(BEGAN)
    if before is None or before["rule"] != settings["rule"]:
        story.record.rule, story.record.rule_sha256 = rule.as_json(), rule.digest()
        story.record.rule_fixed_at = now()
    story.about[BEGAN] = settings
    story.record.result = None
    story.save()


def _finish(story: Story, steps: Steps) -> None:
    """Take every step that is not done."""
    for step in (steps.open_release, steps.divide, steps.score_deployed, steps.train, steps.screen, steps.decide):
        if not story.ended:
            step()
    steps.tell_registry()


def _report(story: Story) -> None:
    report_gate.write(story.record, story.out / REPORT)
