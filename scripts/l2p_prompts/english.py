# ruff: noqa: E501
"""English. For each topic: subjects, where they are, and sentences that fit any of them."""

LIGHT = (
    "Soft morning light comes in from the left and leaves long, pale shadows.",
    "Warm light of the late afternoon picks out every edge.",
    "The sky is overcast, so the light is even and the colors are quiet.",
    "A single lamp lights the scene, and everything beyond it falls into shadow.",
    "Cool blue light of the hour after sunset lies over everything.",
    "Bright noon sun makes the contrasts hard and the colors strong.",
    "Light from behind draws a thin bright line around every shape.",
    "Thin mist softens the light and takes the distance away.",
)
VIEW = (
    "The picture is taken from slightly above, with the background out of focus.",
    "It is seen from a low angle, close to the ground.",
    "The view is wide and level, with a good deal of empty space on the right.",
    "The frame is tight, and fine texture is visible everywhere.",
    "The subject stands exactly in the middle of a symmetrical picture.",
    "A long lens presses the background close and blurs it.",
    "The main subject sits off to one side, by the rule of thirds.",
    "It looks like a photograph on film, with gentle grain.",
)
OPENINGS = (
    "{Subject} {place}.",
    "In this picture there is {subject} {place}.",
    "A careful study of {subject} {place}.",
    "The scene shows {subject} {place}.",
    "We look at {subject} {place}.",
    "Picture {subject} {place}.",
)
DESIGN = (
    "The palette is held to three colors, with one bright accent.",
    "There are wide margins and a clear order of sizes.",
    "Flat shapes overlap slightly and leave thin light lines between them.",
    "A faint paper texture covers the whole surface.",
    "Everything is aligned on a strict grid.",
    "Rounded corners and soft shadows make it look friendly.",
    "Deep blue and warm cream stand against each other.",
    "The composition leads the eye from the upper left to the lower right.",
)
TOPICS: dict[str, tuple[str, str, str]] = {
    "nature/objects": (
        """a brass ship's compass with a cracked glass|a hand-blown green glass bottle|a worn leather suitcase with brass locks
a cast-iron kettle with a wooden handle|a porcelain teapot painted with blue reeds|a silver pocket watch with its lid open
a stack of linen-bound books|a copper watering can with a dent|a wicker basket full of wool|a marble chess knight""",
        """on a weathered oak table|on a window sill above a rainy street|on a shelf between dried flowers|on a folded gray blanket
on a stone step beside a garden door|on a workbench strewn with wood shavings|on black slate with a few drops of water""",
        """Fine scratches and fingerprints tell of long use.|A few specks of dust float in the light.
Its shadow falls across the surface in a soft curve.|The material is so clear that one could guess its weight.""",
    ),
    "nature/cityscape": (
        """a narrow street of stepped houses|an old iron bridge over a slow river|a square with a dry fountain|a tram that turns at a corner
a row of warehouses along a canal|a hillside town of white roofs|a market street under striped awnings|a glass tower among brick houses
a railway station with a great arched roof|a harbor front with painted boats""",
        """at daybreak, before anyone is about|at dusk, as the first windows light up|on a rainy evening|in deep winter, under fresh snow
at noon on a market day|late at night, lit by street lamps|in the golden hour before sunset""",
        """Reflections lie broken on the wet pavement.|Laundry and power lines cross between the walls.
A single cyclist passes at the edge of the picture.|Signs and shutters have faded in many years of sun.""",
    ),
    "nature/food": (
        """a bowl of noodle soup with a halved egg|a loaf of dark rye bread|a plate of grilled sardines with lemon|a slice of layered honey cake
a pan of saffron rice with mussels|a basket of steamed dumplings|a wooden board of cheese and figs|a glass of iced hibiscus tea
a stack of thin pancakes with berries|a clay pot of bean stew""",
        """on a rough linen cloth|on the counter of a small kitchen|on a garden table under a vine|on a tray beside folded newspaper
on dark glazed tiles|at a street stall with steam behind it|on a pale marble slab""",
        """Steam rises in thin threads.|Crumbs and a few herbs lie scattered around it.
A fork rests at the side, just used.|Small drops of oil shine on the surface.""",
    ),
    "nature/plants": (
        """a silver birch with peeling bark|a cluster of fly agaric mushrooms at the foot of a spruce|a row of tall hollyhocks
a bonsai of Japanese maple|a patch of wild strawberries|a giant water lily in flower|a twisted olive tree|a barrel cactus with a crown of red flowers
a fern that uncurls its fronds|a branch of magnolia buds""",
        """at the edge of a damp forest|in a walled kitchen garden|beside a slow stream|in a greenhouse with fogged panes
on a rocky slope above the sea|in a clay pot on a terrace|in a meadow after rain""",
        """Dew hangs from every tip.|An ant climbs along the stem.
The veins of the leaves are as clear as on a map.|Last year's leaves lie brown around the root.""",
    ),
    "nature/indoor": (
        """a reading corner with a green armchair|a narrow attic room with a sloping ceiling|a pottery studio with full shelves
a library with a rolling ladder|a small bathroom tiled in teal|a kitchen with copper pans on the wall|a music room with an open grand piano
a hallway with a long patterned rug|a workshop of a violin maker|a conservatory full of palms""",
        """in a house by the sea|in an old farmhouse|in a city flat with tall windows|in a converted mill
in a mountain cabin|in a quiet museum wing|in a house built around a courtyard""",
        """A cup has been left on the floor.|Dust turns slowly in the air.
The floorboards are worn where people walk.|A curtain moves in the draft of an open window.""",
    ),
    "nature/landscape": (
        """a chain of blue mountains|a salt flat with hexagonal cracks|a terraced valley of rice fields|a glacier that ends in a gray lake
a dune field with sharp crests|a heath in full bloom|a waterfall in a basalt gorge|a river delta at low tide
a lone hill with a single pine|a coast of white chalk cliffs""",
        """under a sky of towering clouds|below the first stars|after a thunderstorm|in the last light of autumn
with a ribbon of fog in the low ground|in early spring, with snow in the hollows|seen from a high pass""",
        """A tiny path winds toward the horizon.|A flock of birds gives the scale.
Bands of light and shadow cross the land.|The foreground is full of small stones and grass.""",
    ),
    "nature/animals": (
        """a red fox with a winter coat|a kingfisher with a small fish in its bill|a snow leopard at rest|an old sea turtle
a hedgehog with wet paws|a herd of wild ponies|a barn owl in flight|a tree frog with orange feet|a highland cow with a long fringe|a pair of mute swans""",
        """among tall reeds|on a mossy branch|in shallow clear water|at the edge of a wheat field
on a snowy slope|in a clearing full of bluebells|beside a fallen trunk""",
        """Every hair or feather can be made out.|Its eyes are fixed on something outside the frame.
A little breath shows in the cold air.|Blurred leaves in the foreground hide part of its body.""",
    ),
    "design/arts": (
        """a watercolor of fishing huts|an oil painting of a thunderhead over plains|a woodblock print of cranes|a charcoal drawing of tired hands
a gouache of lemons and a blue jug|an ink wash of bamboo in wind|a stained-glass window of a rising sun|a linocut of a night train
a pastel of dancers at rest|a mosaic of fish in pale stone""",
        """on heavy paper with a deckled edge|framed in plain ash|in a loose, quick manner|with a limited palette of earth colors
in the middle of being made, with tools beside it|shown whole, against a white wall|with visible marks of the hand""",
        """The edges are left unfinished.|Thick and thin strokes alternate.
Where colors meet, they run into each other.|A small signature mark stands in a corner.""",
    ),
    "design/posters": (
        """a poster that says "Harvest Fair, 12 September" above a giant pumpkin|a concert poster with the words "Night of Strings"
a travel poster reading "The Northern Coast by Rail"|a museum poster titled "A Century of Chairs"|a safety poster with the line "Look Twice, Cut Once"
a theater poster that reads "The Clockmaker's Daughter"|a poster for a race with the words "Run the River 10K"|a science poster titled "How Bees Find Home"
a coffee-house poster that says "Slow Mornings Welcome"|a film-festival poster with "Seven Days of Silent Film" """,
        """in the style of the 1930s, with flat shapes|printed in two colors with a slight misregister|with bold sans-serif capitals
with hand-drawn letters that follow a curve|pasted on a brick wall|in a clean Swiss layout|with one large illustration and little text""",
        "",
    ),
    "design/slides": (
        """a slide titled "Three Ways to Save Water" with three icons|a title slide that reads "Annual Report of the Harbor Museum"
a slide with the heading "Sales by Season" and a bar chart|a slide that says "What We Learned" above four short lines
a timeline slide titled "From Seed to Table"|a slide headed "Our Team" with six round portraits|a quote slide that reads "Measure first, then decide"
a comparison slide titled "Before and After"|a map slide with the heading "Where the River Floods"|a closing slide that says "Thank You, Questions?" """,
        """on a white background|on a dark gradient|with a colored band at the left|with a photograph that fills the right half
with thin line drawings|in a calm green palette|with large numbers as the main element""",
        "",
    ),
    "design/cartoon": (
        """a snail that delivers letters in a tiny cap|two robots that share an umbrella|a bear who bakes bread at night|a girl who rides a paper airplane
a cat that conducts an orchestra of mice|a lighthouse with a friendly face|an old wizard who has lost his glasses|a penguin on a bicycle
a family of mushrooms at dinner|a dragon who is afraid of the dark""",
        """drawn with thick outlines and flat colors|in soft crayon strokes|in the manner of a picture book|as a comic panel with halftone dots
in a hazy painted forest|on a rooftop under a huge moon|in a cozy room full of odd things""",
        """Big round eyes show just what it feels.|The colors are bright, the shadows simple.
Small jokes hide in the background.|Motion lines show that something has just happened.""",
    ),
    "design/UI": (
        """a weather app screen that shows "Rain at 4 PM"|a music player with the track "Paper Boats" playing|a login page with a button "Sign In"
a recipe app with the heading "Quick Dinners"|a banking dashboard titled "Your Week in Numbers"|a train-ticket app with "Platform 6, 08:42"
a settings page with the switch "Dark Mode"|a fitness screen that reads "7,214 Steps"|a calendar view headed "October"
a plant-care app that says "Water Me Today" """,
        """on a phone held in portrait|on a wide desktop window|as a flat mock-up on a pale background|in a dark theme
with large rounded cards|with thin icons and plenty of space|on a tablet beside a cup""",
        "",
    ),
    "people/portrait": (
        """an elderly fisherman with a gray beard|a young woman with a shaved head and large earrings|a boy with freckles and a missing tooth
a baker with flour on her cheeks|a man in a tailored green suit|a violinist with closed eyes|a scientist in safety glasses|a grandmother with silver braids
a dancer with painted hands|a teenager in a yellow raincoat""",
        """in front of a plain ochre wall|beside a tall window|in a crowded street that blurs behind|under the branches of an apple tree
in a dim workshop|on a ferry deck with the sea behind|against a dark studio backdrop""",
        """The look goes straight into the camera.|A faint smile is just beginning.
Skin, hair and cloth are rendered in fine detail.|One hand comes up to the collar.""",
    ),
    "people/sports": (
        """a rower at the end of a stroke|two fencers in mid-lunge|a rock climber on an overhang|a skateboarder above the rim of a bowl
a goalkeeper at full stretch|a swimmer who breaks the surface|a cyclist on a steep switchback|a pair of table-tennis players|a ski jumper in flight
a runner on a muddy trail""",
        """in pouring rain|in front of an empty stand|in the cold light of dawn|with a blurred crowd behind
against a wide sky|under bright floodlights|among autumn trees""",
        """Drops and dust are frozen in the air.|Every muscle is tense.
The background is drawn out by the speed.|The face shows nothing but concentration.""",
    ),
    "people/activities": (
        """a potter who pulls up the wall of a vase with both hands|a woman who sharpens a chisel on a wet stone|a father and daughter who fold paper cranes
a beekeeper who lifts a frame from the hive|a man who mends a net with a wooden needle|students who solder a circuit under a lamp
a gardener who prunes roses with long shears|a cook who stretches noodles between her arms|two friends who tune a piano|a bookbinder who presses gold onto a spine""",
        """in a small workshop|in a bright courtyard|at a long table by the window|in a barn with open doors
on a quiet terrace|in a room with whitewashed walls|behind a shop, among crates""",
        """The tools lie in reach, in the order of their use.|Both hands are busy, and the eyes follow them.
Scraps and dust have gathered on the floor.|Somebody watches from the doorway.""",
    ),
    "text/Chinese": (
        """a carved wooden sign with the characters "山水茶舍"|a red paper banner that reads "岁岁平安"|a scroll with the brush-written line "海阔天空"
a street sign with "和平路" in white on blue|a neon sign that glows "夜市"|a stone gate with "清风明月" above the arch|a teacup painted with the word "知足"
a book cover titled "江南旧事"|a chalkboard menu headed "今日汤面"|a paper lantern with the character "福" """,
        """in a lane of gray brick|beside a pot of chrysanthemums|on a rainy evening|under the eaves of an old house
in a narrow shop full of shelves|in front of a bamboo grove|against a wall of peeling paint""",
        """Each stroke is sharp and complete.|The characters stand in even spacing.
A little wear shows at the corners.|The rest of the picture is kept simple, so that the writing leads.""",
    ),
    "text/English": (
        """a painted shop sign that reads "Bramley & Daughters, Bookbinders"|a neon sign with the words "Open Until Midnight"
a hand-lettered board that says "Fresh Eggs, Honest Price"|an enamel plate with "Platform Two"|a birthday cake with "Thirty at Last" in icing
a chalk drawing on asphalt that reads "Start Here"|a knitted scarf with the word "Winter"|a postcard that says "Wish You Were Here"
a carved bench with "For Those Who Walk"|a typewritten page headed "Chapter One" """,
        """in a quiet side street|on a windy pier|in a low brick room|beside a field of lavender
under a string of lamps|on a foggy morning|against a deep blue wall""",
        """Each letter is crisp and evenly spaced.|The letters cast a small shadow.
The surface around the words is slightly worn.|Nothing else in the picture has writing on it.""",
    ),
}
