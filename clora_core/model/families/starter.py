"""The starter, the small model that comes with this package (`clora_core/starter`).

Its text encoder is called clip_l, so that ComfyUI's own class for one encoder holds it. It knows few words, so its
everyday captions are its own: of its training world, drawn at random once.
"""

from .family import Family, Published
from .unet import UNet

CAPTIONS = """
a photo of a cat with spiky blue hair and a beard wearing a orange shirt on purple
a smiling round cat with a patch wearing a hat and a green shirt
a gray person with a patch on white
a photo of a smiling square pale rabbit with long black hair on white
a cat with short hair wearing a crown and a yellow shirt on blue
a sad round rabbit with a stripe wearing a yellow shirt on orange
a picture of a white tree on blue
a cat with a mask wearing a crown and glasses in the snow
a photo of a purple person wearing a cap and glasses
a photo of a gray cat wearing a pink shirt on white
a photo of a smiling square blue person with a mask wearing glasses and a green shirt on red
a photo of a red triangle in the snow
a photo of a green bear with a stripe wearing a red shirt on green
a photo of a sad bear with curly hair on pink
a photo of a surprised tall gray rabbit with short blue hair and a mask
a bear with no hair wearing a hat and a blue shirt
a tall brown robot with spiky yellow hair and a mask wearing a crown and a green shirt on orange
a picture of a surprised square rabbit with no hair and a patch wearing a cap in gray style
a photo of a sad tall blue bear wearing a crown on red
a photo of a brown robot with a mask on orange
a photo of a green mountain on orange
a photo of a sad rabbit with curly black hair and a mask
a smiling orange cat wearing a hat and a white shirt
a picture of a green house on orange
a blue triangle on orange
a photo of a cat with no hair wearing glasses and a yellow shirt
a rabbit with cheeks wearing a hat and a blue shirt in the city
a smiling purple cat with long red hair and a beard wearing a white shirt on pink
a photo of a sad tall green robot with short hair and a patch wearing a orange shirt on purple
a sad wide cat with spiky red hair wearing a red shirt
a photo of a wide blue person with a mask wearing a crown on yellow
a photo of a smiling round gray person with spiky blue hair and a mask wearing a green shirt on white
a photo of a wide orange cat wearing glasses and a yellow shirt on green
a photo of a wide purple cat on purple in gray style
a picture of a sad cat with long white hair at night
a photo of a bear with long yellow hair and a beard wearing a green shirt
a photo of a square purple rabbit with short brown hair and a mask wearing a cap on white
a photo of a sad orange bear with long yellow hair and cheeks wearing a blue shirt on green
a photo of a red heart on blue
a photo of a yellow heart
a photo of a sad square robot with curly yellow hair wearing a crown and a purple shirt on yellow
a photo of a sad wide purple rabbit with long red hair and a patch wearing glasses and a red shirt on blue
a photo of a smiling rabbit with no hair and a beard wearing a purple shirt
a picture of a cat with cheeks wearing glasses and a green shirt
a photo of a orange bear with curly brown hair and a beard wearing glasses and a purple shirt on white
a brown person with long blue hair and cheeks in the city in sepia style
a photo of a sad robot with spiky hair and a patch wearing a purple shirt
a photo of a tall robot wearing glasses in the forest
a photo of a smiling round pale robot with a mask wearing a white shirt
a sad purple person with short blue hair wearing glasses and a red shirt on red
a blue triangle
a picture of a surprised round person
a cat with no hair
a photo of a blue star in the snow
a photo of a pale person wearing a red shirt on red
a photo of a person with long red hair on blue
a picture of a surprised round gray person wearing a blue shirt
a photo of a green car on white
a picture of a robot with no hair and a mask wearing glasses on pink
a photo of a rabbit wearing a hat at night
a surprised square gray cat with long blue hair and a beard wearing a orange shirt on green
a photo of a surprised bear with curly blue hair and a beard wearing a cap on pink
a photo of a red heart
a picture of a cat with short blue hair and a beard wearing a crown and glasses and a white shirt in sepia style
a photo of a person with short yellow hair and a patch wearing a cap on green in dark style
a photo of a green rabbit wearing a crown and a blue shirt
a photo of a cat wearing glasses in the forest
a picture of a wide rabbit with no hair and cheeks
a round purple person with short blue hair wearing a red shirt in the city
a photo of a blue person wearing glasses and a purple shirt at the beach
a picture of a tan rabbit wearing glasses and a yellow shirt in the city
a photo of a gray person with long hair and a patch wearing a red shirt on orange in sepia style
a photo of a green square on orange
a sad blue cat wearing a crown and a white shirt on white
a photo of a cat with short black hair wearing a pink shirt
a photo of a surprised rabbit with curly brown hair and a mask wearing a cap and glasses and a red shirt on purple
a wide gray person with spiky red hair and cheeks wearing glasses and a red shirt in the snow
a photo of a orange cat with short black hair wearing glasses
a photo of a smiling person with a stripe wearing a crown and glasses and a red shirt
a photo of a sad square tan bear with long black hair and a patch wearing a white shirt on red
a photo of a surprised brown cat with no hair and a patch at night
a photo of a cat wearing a red shirt
a picture of a wide cat with cheeks wearing a hat and a orange shirt on pink
a smiling tall cat with short white hair and a stripe wearing a crown and a orange shirt
a tall rabbit with spiky brown hair and a stripe
a photo of a square person with curly white hair and a stripe wearing a crown and a orange shirt on green
a photo of a smiling square person with spiky red hair on pink
a pink car in the forest
a photo of a purple circle
a red flower on purple
a picture of a round pale person with short brown hair and a stripe in the snow
a picture of a surprised tall gray robot with curly hair and a patch wearing a cap on blue
a photo of a tall robot with curly red hair and cheeks on green
a orange bear wearing a crown and glasses and a orange shirt at night
a surprised orange bear with a stripe wearing a purple shirt on red
a picture of a red circle on blue
a photo of a rabbit with curly white hair wearing a cap and a purple shirt on red
a photo of a wide bear with long black hair and a stripe wearing a hat and a blue shirt at night
a orange house in the forest
a picture of a round brown robot with cheeks wearing a crown and a orange shirt on yellow
a square pale robot wearing a crown and a pink shirt on red
a green square in the city
a picture of a smiling round rabbit with no hair wearing a purple shirt on pink
a smiling round brown rabbit with no hair and a stripe wearing glasses and a green shirt at night
a picture of a sad round bear with curly red hair and a patch wearing a hat and a green shirt on yellow
a photo of a wide bear with no hair wearing a pink shirt
a photo of a sad brown person with a beard wearing a crown in the forest
a surprised square bear with no hair on red
a smiling square blue cat with cheeks wearing a crown and a red shirt at night
a picture of a sad gray bear with long brown hair wearing a orange shirt at the beach
a photo of a sad tall robot with a beard wearing glasses and a orange shirt at night
a photo of a smiling wide purple cat at night
a photo of a pink tree on white
a photo of a smiling square orange cat wearing a cap and glasses and a red shirt
a picture of a pink triangle on blue
a rabbit with no hair wearing a hat and glasses and a yellow shirt on pink
a smiling cat wearing a cap on yellow
a photo of a sad robot with curly white hair and a mask at the beach
a photo of a purple bear with short yellow hair on green
a gray rabbit with no hair in the city
a photo of a white triangle on pink
a picture of a smiling robot with short yellow hair and a mask wearing a yellow shirt on purple
a surprised gray robot wearing a crown on green
a cat with short hair and cheeks wearing a crown and a red shirt in the city
a picture of a pale rabbit at the beach
a picture of a person with short hair wearing glasses and a green shirt on purple
a tall robot with long brown hair on yellow
a photo of a sad orange bear with a beard wearing a hat
a photo of a surprised gray bear with short red hair in the snow
a photo of a wide person with cheeks wearing a cap and a purple shirt
a square robot with curly red hair and a patch wearing a purple shirt on red in gray style
a photo of a green circle in the snow
a photo of a smiling wide brown person with a patch wearing a hat
a photo of a smiling wide cat with a mask wearing a hat and a green shirt at the beach
a gray rabbit with a stripe wearing a blue shirt at night
a photo of a robot with curly red hair and a mask wearing a crown and glasses and a orange shirt on pink
a yellow tree in the city in gray style
a photo of a tall cat with long red hair and a patch wearing glasses and a blue shirt on white
a picture of a square person wearing a blue shirt on purple
a photo of a blue house on purple
a photo of a purple car
a photo of a wide orange rabbit with spiky white hair wearing a cap and glasses and a red shirt on orange
a picture of a person with curly black hair wearing glasses and a green shirt
a surprised round person with a beard wearing a hat and glasses at the beach
a picture of a red boat at night
a picture of a surprised orange cat with a beard wearing a crown and a white shirt on pink
a yellow boat in the snow
a photo of a person with no hair and cheeks wearing a crown and a white shirt
a photo of a person with long red hair and a patch wearing a crown and a orange shirt
a photo of a smiling tall green bear with a mask on blue
a surprised pale rabbit with no hair wearing a pink shirt
a photo of a smiling bear wearing a crown and a white shirt on blue
a photo of a green tree
a photo of a pink circle in the forest
a photo of a smiling round robot with a mask in the forest
a surprised tan bear with short brown hair and a stripe wearing a purple shirt
a photo of a wide brown rabbit with short hair wearing a hat
a picture of a smiling tall gray rabbit with long red hair and a stripe wearing a purple shirt in the city
a photo of a bear with short blue hair wearing a green shirt
"""

STARTER = Family(
    name="starter",
    title="starter",
    structure=UNet(),
    text_width=128,
    encoders={"clip_l": 128},
    latent_channels=32,
    resolutions={"v_prediction": 64},
    published=Published("clora_starter", "clora-starter"),
    kept_bytes=20_000,
    checkpointed=0.25,
    guidance=5.0,
    captions=tuple(CAPTIONS.splitlines()),
)
