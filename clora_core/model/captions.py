"""Everyday prompts, which a new concept should not change."""

SUBJECTS = (
    *("man", "woman", "child", "old man", "young woman", "group of people", "crowd", "dancer", "soldier", "chef"),
    *("cat", "dog", "horse", "bird", "fish", "butterfly", "elephant", "lion", "cow", "dragon"),
    *("car", "bicycle", "train", "ship", "airplane", "robot", "castle", "house", "bridge", "skyscraper"),
    *("tree", "flower", "mountain", "river", "waterfall", "apple", "cake", "cup of coffee", "book", "chair"),
)
PLACES = (
    *("", "in the snow", "at the beach", "in a forest", "in a city at night", "in a kitchen", "on a table"),
    *("under a blue sky", "in the desert", "at sunset", "in the rain"),
)
OPENINGS = (
    *("a photo of a {}", "a painting of a {}", "a close-up of a {}", "a {}", "a drawing of a {}"),
    *("a black and white photo of a {}", "a 3d render of a {}"),
)


def everyday_captions() -> tuple[str, ...]:
    """160 captions that combine subjects, places and media, always the same. The first one is empty."""
    captions = [""]
    for number in range(159):
        opening, place = OPENINGS[number % len(OPENINGS)], PLACES[number % len(PLACES)]
        captions.append(f"{opening.format(SUBJECTS[number % len(SUBJECTS)])} {place}".strip())
    return tuple(captions)
