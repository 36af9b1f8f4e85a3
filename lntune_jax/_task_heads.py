"""What PEFT saves beside the head of a task (`config.TASK_HEADS`). Data only."""

# Modules that PEFT saves with a head because their names end alike, by the first segment of the
# model's paths. They are outside the head, so the base has to give them.
SAVED_WITH_HEAD = {"distilbert": "pre_classifier"}
