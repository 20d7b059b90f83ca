"""Guidance branches: how often a pipeline runs its transformer within one step.

With classifier-free guidance mflux runs it twice, on the prompt first and then on the negative prompt. Branches are told
apart by their order within the step. The decision is taken once, on the first (conditional) branch, and holds for both;
each branch keeps a residual of its own.
"""

#: Guidance distilled into the model: one call a step, whatever --guidance says.
DISTILLED_GUIDANCE = 1

#: Classifier-free guidance: a second call whenever the guidance scale is above 1.
CLASSIFIER_FREE_GUIDANCE = 2
