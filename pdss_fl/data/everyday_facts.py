"""What the set ``everyday`` knows: kinds of everyday things, and what holds of every thing of a kind.

All of it was written and read for this project. Three rules keep a question about it fair:

- a property holds of every thing that the kind lists, in the ordinary sense of the word;
- a thing stands in one kind only, and is neither the name of a kind nor the value of a property;
- ``also`` names the other values of the same relation that hold too, or that a reader could argue
  for: they never stand beside the answer. A goose lives in a nest, and on a farm, and near water.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Property:
    """One thing that holds of a whole kind.

    Parameters
    ----------
    relation : str
        What is asked, for example ``"part"``; kinds share relations, and so lend each other wrong choices.
    value : str
        The answer, one word.
    statement : str
        A sentence that says so of the kind; it contains the value.
    also : str (default: "")
        Other values of the relation that are true or arguable, separated by spaces.
    """

    relation: str
    value: str
    statement: str
    also: str = ""


@dataclass(frozen=True)
class Kind:
    """A kind of things.

    Parameters
    ----------
    name : str
        One word, the answer to the question what kind a thing is.
    phrase : str
        The name as it follows "is", for example ``"a bird"``.
    plural : str
        The name as it follows "like other".
    clue : str
        What shows that a thing is of this kind, as it follows "A robin".
    things : str
        Singular nouns that take an article, separated by spaces.
    properties : tuple[Property, ...]
        What holds of all of them, at most once per relation.
    mass : str (default: "")
        Nouns without an article, like "gold" and "tennis", separated by spaces.
    also : str (default: "")
        Names of other kinds that some thing of this kind could be said to belong to.
    """

    name: str
    phrase: str
    plural: str
    clue: str
    things: str
    properties: tuple[Property, ...]
    mass: str = ""
    also: str = ""


_LIVING = "legs veins parents protein vitamins opening"  # parts that most animals have
_MOVES = "swim tear"  # what an animal may do, or what befalls it

KINDS: tuple[Kind, ...] = (
    Kind(
        name="bird",
        phrase="a bird",
        plural="birds",
        clue="has feathers and can fly",
        things="robin eagle owl sparrow crow pigeon hawk swan parrot dove goose raven falcon duck",
        also="livestock meat fabric",
        properties=(
            Property("part", "feathers", "Birds have feathers.", also=f"{_LIVING} scales"),
            Property("ability", "fly", "Birds can fly high in the sky.", also=f"{_MOVES} talk walk crawl spread"),
            Property("origin", "egg", "A young bird hatches from an egg.", also="animal"),
            Property(
                "place",
                "nest",
                "Birds live in a nest.",
                also="forest zoo farm garden water house road battlefield kitchen mine stadium cafe bakery",
            ),
        ),
    ),
    Kind(
        name="fish",
        phrase="a fish",
        plural="fish",
        clue="has fins and can swim",
        things="salmon trout tuna cod shark carp herring eel mackerel sturgeon haddock sardine",
        also="meat color livestock",
        properties=(
            Property("part", "fins", "Fish have fins.", also=f"{_LIVING} scales"),
            Property(
                "ability",
                "swim",
                "Fish can swim in the sea or in a lake.",
                also="tear spoil crawl",
            ),
            Property(
                "place",
                "water",
                "Fish live in water.",
                also="zoo kitchen cafe house farm garden forest body nest",
            ),
            Property("user", "fisherman", "A fisherman catches fish.", also="chef waiter butcher farmer vet sailor"),
            Property("action", "catch", "People catch fish.", also="eat cook smell chop raise play"),
        ),
    ),
    Kind(
        name="insect",
        phrase="an insect",
        plural="insects",
        clue="has antennae and comes from an egg",
        things="ant bee wasp moth butterfly beetle mosquito cockroach grasshopper locust hornet flea termite",
        also="vehicle tree worker",
        properties=(
            Property("part", "antennae", "Insects have antennae.", also=f"{_LIVING} scales fur job threads"),
            Property("ability", "crawl", "Insects can crawl up a wall.", also=f"{_MOVES} fly walk spread"),
            Property("origin", "egg", "A young insect hatches from an egg.", also="animal soil plant"),
            Property(
                "need",
                "food",
                "Like every animal, insects need food.",
                also="warmth sunlight blood treatment",
            ),
        ),
    ),
    Kind(
        name="mammal",
        phrase="a mammal",
        plural="mammals",
        clue="has fur and can walk",
        things="lion tiger wolf bear monkey leopard otter panda cheetah gorilla koala raccoon lynx",
        also="livestock dog relative",
        properties=(
            Property("part", "fur", "Mammals have fur.", also=f"{_LIVING} paws"),
            Property(
                "place",
                "zoo",
                "People watch mammals at the zoo.",
                also="forest farm garden house road water nest kennel ring kitchen",
            ),
            Property("ability", "walk", "Mammals can walk on their feet.", also=f"{_MOVES} bark crawl talk"),
            Property("trait", "wild", "Many mammals are wild.", also="dangerous healthy precious loyal sweet shiny"),
            Property("need", "food", "Mammals need food every day.", also="warmth sunlight blood washing"),
        ),
    ),
    Kind(
        name="reptile",
        phrase="a reptile",
        plural="reptiles",
        clue="has scales and needs warmth",
        things="snake lizard turtle crocodile alligator cobra gecko tortoise python iguana viper",
        also="livestock",
        properties=(
            Property("part", "scales", "Reptiles have scales.", also=f"{_LIVING} fins paws"),
            Property("ability", "crawl", "Reptiles can crawl over the ground.", also=f"{_MOVES} walk"),
            Property(
                "place",
                "zoo",
                "People watch reptiles at the zoo.",
                also="water forest garden house farm nest road kitchen",
            ),
            Property("need", "warmth", "Reptiles need warmth from the sun.", also="food sunlight blood"),
        ),
    ),
    Kind(
        name="dog",
        phrase="a dog",
        plural="dogs",
        clue="has paws and can bark",
        things="poodle beagle terrier collie spaniel greyhound labrador retriever puppy hound husky bulldog pug",
        also="mammal livestock worker meat",
        properties=(
            Property("part", "paws", "Dogs have paws.", also=f"{_LIVING} fur job"),
            Property("ability", "bark", "Dogs can bark at strangers.", also=f"{_MOVES} walk crawl"),
            Property(
                "place",
                "kennel",
                "Dogs sleep in a kennel.",
                also="house farm garden road forest water hospital office stadium ring kitchen zoo cafe battlefield",
            ),
            Property("user", "vet", "A vet cares for sick dogs.", also="farmer soldier surgeon doctor fisherman"),
            Property(
                "action",
                "walk",
                "People walk dogs.",
                also="raise smell play catch visit eat cook chop mix enter drive",
            ),
            Property("trait", "loyal", "Dogs are loyal.", also="healthy sweet precious dangerous wild shiny"),
        ),
    ),
    Kind(
        name="livestock",
        phrase="livestock",
        plural="livestock",
        clue="has hooves and lives on a farm",
        things="cow sheep goat pig donkey bull lamb ox mule horse pony ram mare",
        also="mammal meat vehicle worker weapon",
        properties=(
            Property("part", "hooves", "Livestock have hooves.", also=f"{_LIVING} fur job"),
            Property("ability", "walk", "Livestock can walk across a field.", also=f"{_MOVES} crawl"),
            Property(
                "place",
                "farm",
                "Livestock live on a farm.",
                also="garden road zoo kitchen forest battlefield ring stadium mine water",
            ),
            Property(
                "user",
                "farmer",
                "A farmer keeps livestock.",
                also="vet butcher chef soldier driver athlete miner tailor",
            ),
            Property(
                "action",
                "raise",
                "People raise livestock.",
                also="eat cook drive walk catch smell chop climb hire visit wear mix enter play",
            ),
        ),
    ),
    Kind(
        name="tree",
        phrase="a tree",
        plural="trees",
        clue="has branches and grows in a forest",
        things="oak pine maple willow birch cedar elm beech poplar spruce fir sycamore redwood cypress",
        also="color flower fruit",
        properties=(
            Property(
                "part",
                "branches",
                "Trees have branches.",
                also="petals scales veins shades protein vitamins parents",
            ),
            Property(
                "place",
                "forest",
                "Trees grow in a forest.",
                also="garden farm road zoo house water closet ring battlefield",
            ),
            Property("origin", "seed", "A tree grows from a seed.", also="plant soil"),
            Property("need", "sunlight", "Trees need sunlight.", also="food warmth treatment"),
            Property("action", "climb", "People climb trees.", also="chop smell raise eat visit cook drink"),
        ),
    ),
    Kind(
        name="flower",
        phrase="a flower",
        plural="flowers",
        clue="has petals and can bloom",
        things="rose tulip lily daisy orchid sunflower poppy daffodil dandelion marigold carnation",
        mass="lavender jasmine",
        also="color vegetable tree spice beverage",
        properties=(
            Property(
                "part",
                "petals",
                "Flowers have petals.",
                also="branches veins shades protein vitamins parents scales",
            ),
            Property(
                "place",
                "garden",
                "Flowers grow in a garden.",
                also="forest house farm water road hospital office cafe kitchen battlefield closet zoo",
            ),
            Property(
                "action",
                "smell",
                "People smell flowers.",
                also="eat drink cook chop raise wear catch mix climb enter",
            ),
            Property(
                "ability",
                "bloom",
                "Flowers can bloom in spring.",
                also="spoil spread tear crawl fly",
            ),
            Property(
                "user",
                "gardener",
                "A gardener plants flowers.",
                also="farmer painter chef soldier baker doctor",
            ),
            Property("need", "sunlight", "Flowers need sunlight.", also="food warmth treatment"),
        ),
    ),
    Kind(
        name="fruit",
        phrase="a fruit",
        plural="fruits",
        clue="is sweet and comes from a plant",
        things="apple banana grape peach pear cherry plum mango melon strawberry blueberry apricot "
        "watermelon pineapple",
        also="color dessert vegetable tree device flower",
        properties=(
            Property(
                "part",
                "vitamins",
                "Fruits have vitamins.",
                also="veins protein shades scales fur threads seams hull",
            ),
            Property("trait", "sweet", "Fruits are sweet.", also="healthy liquid shiny wild hollow"),
            Property("action", "eat", "People eat fruits.", also="smell chop cook mix drink raise catch fill"),
            Property("origin", "plant", "Fruits grow on a plant.", also="seed soil"),
        ),
    ),
    Kind(
        name="vegetable",
        phrase="a vegetable",
        plural="vegetables",
        clue="is healthy and comes from the soil",
        things="carrot potato onion cabbage turnip radish beet",
        mass="spinach broccoli lettuce celery cauliflower kale asparagus",
        also="flower color spice",
        properties=(
            Property(
                "part",
                "vitamins",
                "Vegetables have vitamins.",
                also="veins protein shades branches scales threads petals",
            ),
            Property("trait", "healthy", "Vegetables are healthy.", also="sweet wild hollow shiny"),
            Property(
                "place",
                "garden",
                "Vegetables grow in a garden.",
                also="farm kitchen house cafe bakery forest hospital body",
            ),
            Property("user", "farmer", "A farmer grows vegetables.", also="gardener chef waiter baker doctor"),
            Property("action", "chop", "People chop vegetables.", also="eat cook smell mix raise fill drink"),
            Property("origin", "soil", "Vegetables grow in the soil.", also="seed plant"),
        ),
    ),
    Kind(
        name="beverage",
        phrase="a beverage",
        plural="beverages",
        clue="is liquid and can spill",
        things="milkshake smoothie latte espresso cappuccino",
        mass="tea coffee juice lemonade soda cocoa cola milk",
        also="dessert fruit spice color tree",
        properties=(
            Property("action", "drink", "People drink beverages.", also="smell mix cook fill eat raise read"),
            Property("trait", "liquid", "Beverages are liquid.", also="sweet healthy shiny human"),
            Property(
                "ability",
                "spill",
                "Beverages can spill from a full cup.",
                also="spoil melt spread bloom",
            ),
            Property(
                "place",
                "cafe",
                "A cafe sells beverages.",
                also="kitchen house office bakery farm body stadium concert hospital garden water forest",
            ),
            Property("user", "waiter", "A waiter serves beverages.", also="chef baker farmer"),
        ),
    ),
    Kind(
        name="meat",
        phrase="meat",
        plural="meat",
        clue="comes from an animal and has protein",
        things="steak sausage",
        mass="beef pork ham bacon veal mutton venison brisket",
        also="livestock mammal dog",
        properties=(
            Property("origin", "animal", "Meat comes from an animal.", also="egg"),
            Property("user", "butcher", "A butcher cuts meat.", also="chef farmer waiter baker vet"),
            Property("action", "cook", "People cook meat.", also="eat chop smell mix fill raise"),
            Property("part", "protein", "Meat has protein.", also="vitamins veins legs"),
            Property("ability", "spoil", "Meat can spoil when it gets warm.", also="spread tear melt"),
        ),
    ),
    Kind(
        name="dessert",
        phrase="a dessert",
        plural="desserts",
        clue="is sweet and comes from a bakery",
        things="cake pie cookie brownie cupcake cheesecake doughnut tart pastry",
        mass="gingerbread",
        properties=(
            Property("trait", "sweet", "Desserts are sweet.", also="liquid hollow shiny"),
            Property("action", "eat", "People eat desserts.", also="cook smell mix chop fill raise"),
            Property("user", "baker", "A baker bakes desserts.", also="chef waiter"),
            Property("made", "sugar", "Desserts are made from sugar.", also="paper"),
            Property(
                "place",
                "bakery",
                "A bakery sells desserts.",
                also="cafe kitchen house office stadium concert hospital farm garden",
            ),
        ),
    ),
    Kind(
        name="metal",
        phrase="a metal",
        plural="metals",
        clue="is shiny and comes from ore",
        things="",
        mass="iron gold silver copper aluminum zinc nickel tin platinum titanium cobalt tungsten",
        also="color gem appliance tool container",
        properties=(
            Property("origin", "ore", "Metals are melted out of ore.", also="rock soil plant"),
            Property(
                "trait",
                "shiny",
                "Metals are shiny.",
                also="precious liquid electric electronic healthy hollow dangerous musical",
            ),
            Property(
                "ability",
                "melt",
                "Metals can melt in a hot fire.",
                also="spread bloom spoil spill tear",
            ),
            Property(
                "user",
                "miner",
                "A miner digs for metals.",
                also="jeweler builder carpenter architect soldier surgeon musician athlete painter "
                "doctor driver chef baker waiter",
            ),
            Property(
                "place",
                "mine",
                "Metals are found in a mine.",
                also="ring toolbox kitchen house body hospital battlefield road office water farm garden stadium",
            ),
        ),
    ),
    Kind(
        name="gem",
        phrase="a gem",
        plural="gems",
        clue="is precious and comes from rock",
        things="diamond ruby emerald sapphire topaz amethyst garnet opal",
        mass="jade turquoise",
        also="color metal",
        properties=(
            Property("trait", "precious", "Gems are precious.", also="shiny"),
            Property("place", "ring", "Gems are set in a ring.", also="mine house closet body stadium water"),
            Property("user", "jeweler", "A jeweler polishes gems.", also="miner painter athlete builder"),
            Property("action", "wear", "People wear gems.", also="chop sew raise catch mix play"),
            Property("origin", "rock", "Gems are cut from rock.", also="ore soil"),
            Property("purpose", "jewelry", "Gems are used for jewelry.", also="painting clothing"),
        ),
    ),
    Kind(
        name="fabric",
        phrase="a fabric",
        plural="fabrics",
        clue="has threads and is used for clothing",
        things="",
        mass="cotton wool silk linen denim velvet nylon polyester satin flannel lace fleece tweed cashmere",
        also="garment flower color",
        properties=(
            Property(
                "part",
                "threads",
                "Fabrics have threads.",
                also="seams shades fur protein scales petals branches",
            ),
            Property(
                "ability",
                "tear",
                "Fabrics can tear when someone pulls hard.",
                also="spoil melt spread bloom",
            ),
            Property("action", "sew", "People sew fabrics.", also="wear mix chop raise fill smell"),
            Property(
                "user",
                "tailor",
                "A tailor makes clothes from fabrics.",
                also="farmer fisherman painter sailor surgeon doctor",
            ),
            Property("purpose", "clothing", "Fabrics are used for clothing.", also="painting storage repairs music"),
        ),
    ),
    Kind(
        name="garment",
        phrase="a garment",
        plural="garments",
        clue="has seams and hangs in a closet",
        things="shirt jacket dress skirt coat sweater blouse vest gown robe cardigan hoodie cloak blazer",
        also="fabric",
        properties=(
            Property("part", "seams", "Garments have seams.", also="threads shades fur feathers opening"),
            Property(
                "place",
                "closet",
                "Garments hang in a closet.",
                also="house battlefield body office hospital concert stadium forest cafe farm garden kitchen",
            ),
            Property("action", "wear", "People wear garments.", also="sew smell hire raise chop"),
            Property("made", "cloth", "Garments are made of cloth.", also="metal"),
            Property("need", "washing", "Dirty garments need washing.", also="sunlight warmth treatment"),
        ),
    ),
    Kind(
        name="furniture",
        phrase="furniture",
        plural="furniture",
        clue="has legs and stands in a house",
        things="chair table bed desk bench stool sofa couch armchair dresser nightstand crib",
        also="container worker",
        properties=(
            Property(
                "part",
                "legs",
                "Furniture has legs.",
                also="wheels handle seams threads feathers opening paws job",
            ),
            Property(
                "place",
                "house",
                "Furniture stands in a house.",
                also="kitchen garden library cafe office hospital bakery road stadium closet water "
                "farm nest kennel zoo concert forest",
            ),
            Property("made", "wood", "Most furniture is made of wood.", also="metal cloth"),
            Property(
                "user",
                "carpenter",
                "A carpenter builds furniture.",
                also="builder architect painter tailor librarian doctor surgeon waiter chef "
                "athlete vet musician jeweler butcher gardener",
            ),
        ),
    ),
    Kind(
        name="vehicle",
        phrase="a vehicle",
        plural="vehicles",
        clue="has wheels and needs fuel",
        things="car truck bus van taxi ambulance jeep limousine minivan lorry cab sedan",
        also="device tool container",
        properties=(
            Property(
                "part",
                "wheels",
                "Vehicles have wheels.",
                also="handle roof seams plug circuits shades threads fins hull opening antennae",
            ),
            Property(
                "user",
                "driver",
                "A driver steers vehicles.",
                also="farmer soldier doctor surgeon builder painter carpenter gardener musician "
                "miner athlete fisherman vet",
            ),
            Property("need", "fuel", "Vehicles need fuel.", also="electricity washing treatment warmth"),
            Property(
                "place",
                "road",
                "Vehicles drive on a road.",
                also="farm hospital house stadium battlefield mine forest zoo office",
            ),
            Property("action", "drive", "People drive vehicles.", also="hire fill climb catch raise enter"),
            Property("purpose", "transport", "Vehicles are used for transport.", also="storage fighting"),
        ),
    ),
    Kind(
        name="boat",
        phrase="a boat",
        plural="boats",
        clue="has a hull and travels on water",
        things="canoe kayak yacht ferry barge schooner dinghy catamaran sailboat",
        also="vehicle sport",
        properties=(
            Property(
                "part",
                "hull",
                "A boat has a hull.",
                also="roof handle wheels plug circuits fins seams threads opening antennae",
            ),
            Property("place", "water", "Boats travel on water.", also="road forest garden"),
            Property(
                "user",
                "sailor",
                "A sailor works on boats.",
                also="fisherman soldier builder carpenter athlete driver painter architect",
            ),
            Property("purpose", "transport", "Boats are used for transport.", also="exercise fighting storage"),
        ),
    ),
    Kind(
        name="tool",
        phrase="a tool",
        plural="tools",
        clue="has a handle and is used for repairs",
        things="hammer screwdriver wrench drill chisel mallet clamp crowbar spanner hacksaw ratchet",
        also="weapon instrument device appliance sport",
        properties=(
            Property("part", "handle", "A tool has a handle.", also="plug circuits threads wheels opening job"),
            Property(
                "user",
                "builder",
                "A builder uses tools.",
                also="carpenter miner farmer gardener jeweler architect painter surgeon doctor "
                "sailor soldier driver athlete musician butcher chef vet",
            ),
            Property(
                "place",
                "toolbox",
                "Tools are kept in a toolbox.",
                also="house kitchen farm garden closet mine office hospital road body stadium forest battlefield",
            ),
            Property("purpose", "repairs", "Tools are used for repairs.", also="fighting jewelry music"),
        ),
    ),
    Kind(
        name="instrument",
        phrase="an instrument",
        plural="instruments",
        clue="makes music and is played at a concert",
        things="guitar piano violin drum flute trumpet harp cello banjo clarinet saxophone accordion "
        "trombone harmonica",
        also="device tool organ furniture container",
        properties=(
            Property("action", "play", "People play instruments.", also="hire smell mix wear fill"),
            Property("user", "musician", "A musician plays instruments.", also="soldier athlete carpenter"),
            Property("purpose", "music", "Instruments are used for music.", also="storage exercise"),
            Property(
                "place",
                "concert",
                "Instruments are heard at a concert.",
                also="house library cafe stadium battlefield closet body",
            ),
            Property(
                "trait",
                "musical",
                "Instruments are musical.",
                also="hollow shiny electric electronic precious sweet",
            ),
        ),
    ),
    Kind(
        name="spice",
        phrase="a spice",
        plural="spices",
        clue="gives flavor and comes from a plant",
        things="",
        mass="cinnamon pepper ginger nutmeg cumin paprika turmeric saffron vanilla",
        also="color vegetable flower fruit tree dessert",
        properties=(
            Property("purpose", "flavor", "Spices are used for flavor.", also="painting clothing"),
            Property(
                "user",
                "chef",
                "A chef cooks with spices.",
                also="farmer gardener baker waiter butcher doctor",
            ),
            Property(
                "place",
                "kitchen",
                "Spices are kept in a kitchen.",
                also="bakery cafe garden farm house forest body hospital",
            ),
            Property("origin", "plant", "Spices are parts of a plant.", also="seed soil"),
        ),
    ),
    Kind(
        name="appliance",
        phrase="an appliance",
        plural="appliances",
        clue="needs electricity and has a plug",
        things="fridge oven toaster dishwasher blender microwave freezer refrigerator mixer",
        also="device tool container furniture instrument worker beverage",
        properties=(
            Property("need", "electricity", "Appliances need electricity.", also="washing fuel warmth food"),
            Property(
                "place",
                "kitchen",
                "Appliances stand in a kitchen.",
                also="house cafe bakery office hospital closet farm concert",
            ),
            Property(
                "part",
                "plug",
                "An appliance has a plug.",
                also="handle circuits legs wheels seams threads opening",
            ),
            Property(
                "trait",
                "electric",
                "Appliances are electric.",
                also="electronic hollow shiny dangerous healthy",
            ),
        ),
    ),
    Kind(
        name="container",
        phrase="a container",
        plural="containers",
        clue="is hollow and used for storage",
        things="bottle jar box bucket barrel basket crate tub jug bin carton sack flask canister",
        also="furniture instrument tool boat",
        properties=(
            Property(
                "purpose",
                "storage",
                "Containers are used for storage.",
                also="music painting jewelry clothing transport",
            ),
            Property(
                "action",
                "fill",
                "People fill containers.",
                also="mix catch raise climb drink sew play enter hire",
            ),
            Property(
                "part",
                "opening",
                "A container has an opening.",
                also="handle wheels legs seams threads plug vitamins",
            ),
            Property("trait", "hollow", "Containers are hollow.", also="shiny liquid precious musical"),
        ),
    ),
    Kind(
        name="sport",
        phrase="a sport",
        plural="sports",
        clue="has rules and needs players",
        things="",
        mass="tennis football soccer basketball hockey baseball rugby volleyball lacrosse badminton softball handball",
        properties=(
            Property("user", "athlete", "An athlete trains for sports.", also="doctor"),
            Property("action", "play", "People play sports.", also="drive catch visit enter"),
            Property("place", "stadium", "Sports are played in a stadium.", also="garden road ring"),
            Property("purpose", "exercise", "Sports are good for exercise.", also="fighting"),
            Property("need", "players", "Sports need players.", also="sunlight warmth treatment"),
            Property("part", "rules", "Sports have rules.", also="feathers seams opening"),
        ),
    ),
    Kind(
        name="worker",
        phrase="a worker",
        plural="workers",
        clue="is human and has a job",
        things="teacher lawyer nurse dentist plumber engineer accountant journalist clerk secretary "
        "detective cashier editor mechanic",
        also="relative mammal",
        properties=(
            Property(
                "part",
                "job",
                "Workers have a job.",
                also=f"{_LIVING} rules pages circuits shades handle plug scales roof wheels",
            ),
            Property(
                "ability",
                "talk",
                "Workers can talk to each other.",
                also=f"{_MOVES} spill spoil fly walk crawl spread",
            ),
            Property(
                "action",
                "hire",
                "Companies hire workers.",
                also="visit catch walk play raise drive smell eat chop cook drink read",
            ),
            Property(
                "trait",
                "human",
                "Workers are human.",
                also="healthy loyal sweet dangerous wild precious musical",
            ),
        ),
    ),
    Kind(
        name="building",
        phrase="a building",
        plural="buildings",
        clue="has a roof, and people enter it",
        things="school church hotel museum factory temple theater palace cathedral mosque mansion prison courthouse",
        also="organ",
        properties=(
            Property(
                "part",
                "roof",
                "A building has a roof.",
                also="rules handle plug circuits seams branches shades job parents pages opening scales",
            ),
            Property(
                "action",
                "enter",
                "People enter buildings.",
                also="visit climb hire raise fill catch play walk",
            ),
            Property("made", "brick", "Many buildings are made of brick.", also="wood metal"),
            Property(
                "user",
                "architect",
                "An architect designs buildings.",
                also="builder carpenter painter waiter chef musician soldier librarian gardener doctor",
            ),
        ),
    ),
    Kind(
        name="book",
        phrase="a book",
        plural="books",
        clue="has pages and is made of paper",
        things="novel dictionary encyclopedia atlas textbook cookbook biography manual memoir paperback "
        "hardcover autobiography guidebook",
        also="tool",
        properties=(
            Property("part", "pages", "Books have pages.", also="rules threads seams scales job opening"),
            Property(
                "place",
                "library",
                "Books are kept in a library.",
                also="house office closet kitchen hospital cafe toolbox road body bakery",
            ),
            Property(
                "action",
                "read",
                "People read books.",
                also="hire smell sew cook drive visit walk enter eat mix chop",
            ),
            Property("made", "paper", "Books are made of paper.", also="cloth wood"),
            Property(
                "user",
                "librarian",
                "A librarian lends books.",
                also="chef baker doctor driver sailor athlete surgeon architect musician soldier builder carpenter vet",
            ),
        ),
    ),
    Kind(
        name="weapon",
        phrase="a weapon",
        plural="weapons",
        clue="is dangerous and used for fighting",
        things="gun sword rifle pistol spear cannon dagger bomb grenade missile revolver musket shotgun",
        also="tool device instrument sport vehicle",
        properties=(
            Property("purpose", "fighting", "Weapons are used for fighting.", also="exercise"),
            Property(
                "trait",
                "dangerous",
                "Weapons are dangerous.",
                also="shiny hollow precious electric electronic",
            ),
            Property(
                "user",
                "soldier",
                "A soldier carries weapons.",
                also="farmer sailor fisherman athlete gardener miner builder painter carpenter",
            ),
            Property(
                "place",
                "battlefield",
                "Weapons are used on a battlefield.",
                also="house closet forest farm road water toolbox kitchen body mine nest",
            ),
            Property("made", "metal", "Weapons are made of metal.", also="wood"),
        ),
    ),
    Kind(
        name="device",
        phrase="a device",
        plural="devices",
        clue="is electronic and has circuits",
        things="phone laptop computer printer scanner router smartphone monitor keyboard calculator "
        "projector telephone modem",
        also="appliance tool instrument worker reptile organ",
        properties=(
            Property(
                "part",
                "circuits",
                "Devices have circuits.",
                also="plug handle legs wheels pages rules seams threads job opening fins antennae",
            ),
            Property(
                "place",
                "office",
                "Devices stand in an office.",
                also="house library kitchen cafe hospital closet concert stadium bakery road ring "
                "toolbox battlefield body",
            ),
            Property("need", "electricity", "Devices need electricity.", also="fuel sunlight treatment"),
            Property(
                "trait",
                "electronic",
                "Devices are electronic.",
                also="electric shiny hollow precious musical dangerous",
            ),
        ),
    ),
    Kind(
        name="organ",
        phrase="an organ",
        plural="organs",
        clue="is part of the body and needs blood",
        things="heart liver lung kidney stomach brain bladder spleen pancreas intestine",
        also="meat instrument container",
        properties=(
            Property(
                "part",
                "veins",
                "Organs have veins.",
                also="protein vitamins job branches threads opening circuits",
            ),
            Property("place", "body", "Organs are in the body.", also="hospital kitchen concert farm water cafe"),
            Property("user", "surgeon", "A surgeon operates on organs.", also="doctor butcher vet chef athlete"),
            Property("need", "blood", "Organs need blood.", also="food warmth treatment electricity fuel"),
        ),
    ),
    Kind(
        name="disease",
        phrase="a disease",
        plural="diseases",
        clue="comes from germs and can spread",
        things="",
        mass="malaria cholera measles tuberculosis pneumonia polio leprosy influenza rabies mumps typhoid",
        properties=(
            Property("origin", "germs", "These diseases come from germs.", also="animal soil"),
            Property("ability", "spread", "Diseases can spread.", also="spoil spill walk"),
            Property(
                "place",
                "hospital",
                "Diseases are treated in a hospital.",
                also="body house farm water forest battlefield office kitchen kennel zoo road "
                "stadium garden nest mine cafe",
            ),
            Property("user", "doctor", "A doctor treats diseases.", also="surgeon vet farmer soldier"),
            Property("need", "treatment", "Diseases need treatment.", also="blood food warmth washing"),
        ),
    ),
    Kind(
        name="color",
        phrase="a color",
        plural="colors",
        clue="has shades and is used for painting",
        things="",
        mass="red blue green yellow purple pink brown gray black white scarlet crimson beige maroon",
        also="fabric flower gem vegetable beverage",
        properties=(
            Property("part", "shades", "Colors have shades."),
            Property(
                "user",
                "painter",
                "A painter uses colors.",
                also="architect tailor gardener builder carpenter jeweler miner chef doctor",
            ),
            Property("action", "mix", "People mix colors.", also="wear drink play fill catch"),
            Property("purpose", "painting", "Colors are used for painting.", also="clothing jewelry music"),
        ),
    ),
    Kind(
        name="relative",
        phrase="a relative",
        plural="relatives",
        clue="is human and part of a family",
        things="mother father brother sister uncle aunt cousin nephew niece grandmother grandfather son "
        "daughter grandson",
        also="worker mammal",
        properties=(
            Property(
                "part",
                "parents",
                "Relatives have parents.",
                also="legs veins job protein vitamins rules roof shades branches wheels opening handle",
            ),
            Property(
                "ability",
                "talk",
                "Relatives can talk for hours.",
                also=f"{_MOVES} spill spoil fly walk crawl spread",
            ),
            Property(
                "action",
                "visit",
                "People visit relatives.",
                also="raise walk play drive hire catch smell eat chop cook drink",
            ),
            Property(
                "trait",
                "human",
                "Relatives are human.",
                also="healthy loyal sweet dangerous wild precious musical",
            ),
        ),
    ),
)
