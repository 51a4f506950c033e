"""A small synthetic world, 64x64 RGB: concepts, prompts and scenes with pixel-exact ground truth."""

from embedded.world.arrangement import arrangement, in_reading_order
from embedded.world.concepts import CONCEPTS, UNSEEN, profile_of
from embedded.world.conversations import conversations
from embedded.world.descriptions import describe_some, described_prompt, with_commas
from embedded.world.edits import EDITED_TASKS, Edit, edit_of
from embedded.world.false_prompts import change_one_word, claims, resolve, wrong_prompt
from embedded.world.identities import random_identity
from embedded.world.layout import gap, relation
from embedded.world.palette import COLORS
from embedded.world.prompts import POOLS, PROMPTS_HELDOUT, PROMPTS_TRAIN
from embedded.world.questions import attribute_questions
from embedded.world.records import (
    ACCESSORIES,
    CLASSES,
    COLORED,
    CONCEPT_TASKS,
    GENEVAL_TASKS,
    LABELS,
    PLACES,
    SIZE,
    TASKS,
    Backdrop,
    ConceptProfile,
    Entity,
    Instance,
    Placed,
    Prompt,
    Render,
    Scene,
)
from embedded.world.render import render
from embedded.world.scenes import concept_scene, individual_scene, sample, scene_for, training_renders
from embedded.world.visual_questions import questions

__all__ = [
    "ACCESSORIES",
    "CLASSES",
    "COLORED",
    "COLORS",
    "CONCEPTS",
    "CONCEPT_TASKS",
    "EDITED_TASKS",
    "GENEVAL_TASKS",
    "LABELS",
    "PLACES",
    "POOLS",
    "PROMPTS_HELDOUT",
    "PROMPTS_TRAIN",
    "SIZE",
    "TASKS",
    "UNSEEN",
    "Backdrop",
    "ConceptProfile",
    "Edit",
    "Entity",
    "Instance",
    "Placed",
    "Prompt",
    "Render",
    "Scene",
    "arrangement",
    "attribute_questions",
    "change_one_word",
    "claims",
    "concept_scene",
    "conversations",
    "describe_some",
    "described_prompt",
    "edit_of",
    "gap",
    "in_reading_order",
    "individual_scene",
    "profile_of",
    "questions",
    "random_identity",
    "relation",
    "render",
    "resolve",
    "sample",
    "scene_for",
    "training_renders",
    "with_commas",
    "wrong_prompt",
]
