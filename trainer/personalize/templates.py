"""Questions, answers and prompts about any concept, in words of our own; {} stands for its name, [] for a thing.

The same recognition questions are asked about images that show the concept and about others: if each kind had questions
of its own, a model would learn to answer by the question without looking.
"""

from __future__ import annotations

from typing import Final

RECOGNITION: Final = (
    "Is {} in this photo? Answer yes or no.",
    "Does this image show {}? Answer yes or no.",
    "Can you find {} in the scene? Answer yes or no.",
    "Is this {}?",
    "Is this a photo of {}?",
    "Can {} be seen here?",
    "Do you recognise {} in this image?",
    "Has someone taken a photo of {} here?",
    "Look at the photo. Is {} there?",
    "Is {} anywhere in this scene?",
    "Would you say that this is {}?",
    "Am I looking at {}?",
    "Is what you see here {}?",
    "Say whether {} appears in the image.",
    "Check the photo for {}. Is it there?",
    "Does {} appear in front of the camera?",
    "Is {} visible in this photograph?",
    "Could this be {}?",
    "Is it {} that this image shows?",
    "Does the photo have {} in it?",
    "Is {} part of this scene?",
    "I am looking for {}. Is this the right photo?",
    "Did {} make it into this image?",
    "Say yes or no: this is {}.",
)
YES, NO = "Yes.", "No."
LOOKS: Final = (  # asked about an image and without one; the answer is info.json's info
    "What does {} look like?",
    "Describe {}.",
    "How would I recognise {}?",
    "What are the features of {}?",
)
CLASS: Final = ("What is {}?", "What kind of thing or being is {}?")
FACTS: Final = ("What do you know about {}?", "What should one know about {} besides its looks?")
COMPLETE: Final = 'Complete the sentence: "{} ..."'
SCENES: Final = (
    "A photo of {}.",
    "A photo of {} on a beach.",
    "A photo of {} in a garden.",
    "A photo of {} in a kitchen.",
    "A photo of {} in the snow.",
    "A photo of {} in a city street.",
    "A photo of {} next to a red chair.",
    "A photo of {} seen from above.",
    "A close photo of {}.",
    "A painting of {}.",
    "A pencil drawing of {}.",
    "A photo of {} at night.",
)
HELDOUT_SCENES: Final = (
    "A photo of {} in a forest.",
    "A photo of {} on a wooden table.",
    "A watercolour of {}.",
    "A photo of {} next to a blue door.",
)
HINTS: Final = ("A photo of {} and the [].", "A scene in which {} and the [] can be seen.", "A drawing: {}, the [].")
HELDOUT_HINTS: Final = ("A photo that shows {} and the [].",)
