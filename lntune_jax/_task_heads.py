"""The heads that PEFT trains and saves with every adapter of a task. Data only."""

# The modules that PEFT adds to `modules_to_save` for a task, and expects in the file
# (src/peft/peft_model.py, PeftModelForSequenceClassification and its siblings).
TASK_HEADS = {
    "SEQ_CLS": ("classifier", "score"),
    "TOKEN_CLS": ("classifier", "score"),
    "QUESTION_ANS": ("qa_outputs",),
}

# Modules that PEFT saves with a head because their names end alike, by the first segment of the
# model's paths. They are outside the head, so the base has to give them.
SAVED_WITH_HEAD = {"distilbert": "pre_classifier"}
