"""The authored words of the persona world: traits, personas, questions, options, filler.

This file and `text.py` are the source; every file under `datasets/` is derived
from them. Each table is a block of text with one entry per line, so that a person can
read and change it.

Traits have two poles and one letter each. A persona's value on a trait lies between
-1 and +1 (written `F+1`, `S-.5`); an option's affinity is -1 or +1 (written `-H`).
"""

from __future__ import annotations

__all__ = ["FILLER"]

# letter | positive pole | negative pole
TRAITS = """
F | thrifty | lavish
B | bold | cautious
N | rural | urban
S | sociable | solitary
H | healthy | indulgent
T | traditional | modern
L | learned | handy
C | imaginative | orderly
"""
# role | adjective | traits | habit ("you ...") | past ("who once ...")
PERSONAS = """
monk | humble | F+1 S-1 T+.5 | own almost no things | lived behind stone walls
tailor | frugal | F+1 C-.5 | patch every torn coat | sewed sails for sailors
student | broke | F+.5 L+.5 | count every single coin | shared a tiny attic
heiress | pampered | F-1 H-.5 | buy only fine things | inherited a large fortune
actor | glamorous | F-1 S+1 C+.5 | love to be seen | won a famous prize
tycoon | wealthy | F-.5 B+.5 | close deals at lunchtime | sold a shipping company
daredevil | fearless | B+1 L-.5 | live for sudden danger | jumped across burning roofs
pilot | daring | B+1 T-.5 L+.5 | fly through heavy storms | landed on a glacier
smuggler | reckless | B+1 F-1 N+.5 | cross borders in secret | escaped from island guards
clerk | nervous | B-1 T+.5 C-.5 | check every form twice | kept files in cellars
actuary | careful | B-1 C-1 S-.5 | weigh every small risk | priced policies for shipowners
watchman | wary | B-.5 S-.5 | lock each gate twice | stood outside empty warehouses
farmer | rustic | N+1 T+1 L-.5 | rise before the sun | grew up among cattle
ranger | outdoorsy | N+1 B+.5 H+.5 | track deer at dawn | slept under open skies
shepherd | weathered | N+1 S-1 T+.5 | follow sheep over hills | wintered in remote huts
broker | metropolitan | N-1 F-1 T-.5 | trade stocks all day | moved between crowded capitals
driver | streetwise | N-.5 | know every side road | learned all traffic lights
journalist | restless | N-.5 S+.5 | chase the latest story | reported from noisy capitals
bartender | cheerful | S+1 H-.5 | greet everyone by name | worked in crowded taverns
matchmaker | outgoing | S+1 T+.5 B-.5 | introduce strangers to strangers | arranged a hundred marriages
mayor | friendly | S+.5 | shake hands all day | won several local elections
hermit | withdrawn | S-1 N+.5 F+.5 | avoid all noisy company | spent years without visitors
keeper | lonely | S-1 N+.5 | tend a distant lighthouse | watched over empty shores
programmer | shy | S-1 T-1 H-.5 | write code past midnight | built machines in basements
athlete | fit | H+1 B+.5 | train twice a day | ran for the nation
nurse | wholesome | H+.5 S+.5 | believe in clean living | cared for wounded soldiers
swimmer | energetic | H+.5 N+.5 | stretch before every meal | crossed a cold channel
gourmand | greedy | H-1 F-.5 | never refuse extra helpings | emptied many royal plates
sailor | rowdy | H-1 B+1 L-.5 | revel in every harbour | served on merchant ships
comedian | lazy | H-1 S+1 C+.5 | rest until late afternoon | clowned in smoky cellars
priest | pious | T+1 L+.5 | keep the ancient customs | studied under strict bishops
aristocrat | proper | T+1 F-1 C-.5 | honour the family crest | owned a northern castle
grandmother | nostalgic | T+.5 S+.5 | tell of bygone days | raised many noisy children
engineer | progressive | T-.5 | design clever new machines | assembled rockets for agencies
hacker | inventive | T-1 B+1 S-.5 | break into guarded systems | cracked codes in secret
designer | trendy | T-1 C+1 N-.5 | follow every new style | decorated towers of glass
professor | scholarly | L+1 T+.5 | lecture about dead languages | earned some difficult degrees
librarian | bookish | L+1 S-1 B-.5 | catalogue many dusty volumes | read through entire archives
philosopher | thoughtful | L+.5 F+.5 | doubt every easy answer | argued with learned rivals
blacksmith | practical | L-1 T+1 N+.5 | bend iron all day | forged blades for soldiers
mechanic | skilful | L-.5 | repair engines by hand | fixed tractors for villagers
boxer | tough | L-1 H+1 B+.5 | punch the heavy bag | fought in crowded arenas
painter | creative | C+1 S-.5 | see beauty in everything | exhibited in small galleries
poet | dreamy | C+1 L+1 F+.5 | gather strange lovely words | published some thin volumes
musician | artistic | C+1 S+1 F+.5 | improvise with old companions | toured with wandering bands
auditor | tidy | C-.5 | straighten each desk drawer | inspected ledgers for ministries
sergeant | strict | C-.5 H+.5 | obey every standing order | drilled recruits in barracks
judge | precise | C-1 L+1 T+.5 | apply rules without exception | settled disputes in court
"""
# domain | noun | situation | prior level and default (0, or e.g. "2 bus") | options with affinity
QUESTIONS = """
food | dessert | After dinner | 0 | cake -H, fruit +H, pudding +T, sorbet +C
food | breakfast | Early in the morning | 1 bread | bread, oatmeal +H, bacon -H, pastry -F
food | snack | Between two meals | 0 | nuts +H, crisps -H, truffles -F, crackers +F
food | soup | On a cold evening | 2 tomato | tomato, lentil +F, lobster -F, nettle +N
food | main dish | At the end of a long week | 1 stew | stew +T, curry +B, salad +H, burger -H
food | sauce | With a plate of noodles | 3 butter | butter, chili +B, cream -H, pesto +C
food | lunch | At noon | 0 | picnic +N, buffet +S, takeaway -N, leftovers +F
food | cheese | At the market | 3 cheddar | cheddar, brie -F, goat +N, ricotta +H
drink | hot drink | On waking up | 1 coffee | coffee, tea +T, cocoa -H, matcha -T
drink | party drink | At a loud party | 0 | water +H, whisky +B, lemonade -B, champagne -F
drink | juice | In the summer heat | 3 orange | orange, beetroot +H, cherry -H, nettle +N
drink | wine | With a good meal | 2 red | red, sparkling -F, boxed +F, homemade +N
drink | bar | On the way home | 1 pub | pub, rooftop -N, lounge -F, winery +N
drink | cup | At the breakfast table | 3 mug | mug, goblet +T, flask +B, teacup -B
drink | milk | In a bowl of cereal | 1 whole | whole -H, skimmed +H, soy -T, goat +N
drink | toast | With a raised glass | 0 | speech +L, song +C, joke +S, prayer +T
hobby | hobby | On a free afternoon | 0 | chess +L, climbing +B, pottery +C, gardening +N
hobby | sport | At the sports ground | 1 football | football, archery +T, surfing +B, jogging +H
hobby | game | On a rainy day | 0 | charades +S, solitaire -S, darts -L, riddles +L
hobby | craft | During the long winter | 0 | knitting +T, carving -L, sketching +C, robotics -T
hobby | collection | For the empty shelf | 2 stamps | stamps, fossils +L, watches -F, shells +N
hobby | club | In a new town | 1 choir | choir, debating +L, rowing +H, theatre +C
hobby | class | At the evening school | 0 | bookkeeping -C, dancing +S, welding -L, latin +L
hobby | toy | In the playground | 3 ball | ball, blocks -C, crayons +C, kite +N
music | kind of music | On the radio | 1 pop | pop, jazz +C, hymns +T, techno -T
music | instrument | In the practice room | 1 piano | piano, drums +B, flute -B, banjo +N
music | concert | On a night out | 0 | festival +S, recital -S, opera -F, busker +F
music | tune | Before going to sleep | 2 lullaby | lullaby, ballad +T, march -C, serenade +C
music | dance | On the dance floor | 0 | waltz +T, disco -T, tango +B, polka +N
music | record | In the second hand shop | 2 album | album, cassette +F, collectible -F, demo +C
music | tempo | While working | 1 steady | steady -C, slow -B, fast +B, shifting +C
music | venue | For a live band | 3 hall | hall, barn +N, nightclub -N, church +T
travel | trip | During the holidays | 0 | safari +B, cruise -F, hike +N, retreat -S
travel | vehicle | On the way to work | 2 bus | bus, bicycle +H, limousine -F, motorbike +B
travel | destination | For the next journey | 0 | meadow +N, metropolis -N, museum +L, jungle +B
travel | seat | On the train | 3 window | window, aisle +S, corner -S, front +B
travel | lodging | Far from home | 1 hotel | hotel, tent +N, palace -F, hostel +F
travel | souvenir | At the end of a journey | 0 | postcard +F, jewel -F, map +L, mask +C
travel | season | For a long journey | 2 summer | summer, winter +B, autumn +L, spring +H
travel | company | On a long road | 0 | crowd +S, nobody -S, escort -B, dog +N
home | room | Back at home | 1 kitchen | kitchen, library +L, workshop -L, gym +H
home | house | With enough money | 0 | cottage +T, loft -T, mansion -F, cabin +N
home | colour | For the bedroom wall | 3 white | white, purple +C, grey -C, gold -F
home | chair | By the fireplace | 2 armchair | armchair, stool +F, throne -F, hammock +N
home | pet | For the living room | 1 dog | dog, cat -S, snake +B, goldfish -B
home | plant | On the balcony | 3 fern | fern, cactus +F, orchid -F, basil +H
home | picture | Above the sofa | 0 | portrait +T, calendar -C, collage +C, landscape +N
home | lamp | On the bedside table | 2 bulb | bulb, candle +T, lantern +N, neon -T
work | job | In another life | 0 | sculptor +C, notary -C, firefighter +B, astronomer +L
work | workplace | For the next ten years | 1 office | office, field +N, studio +C, laboratory +L
work | kind of meeting | On a busy Wednesday | 2 briefing | briefing, assembly +S, memo -S, checklist -C
work | reward | After a good year | 0 | bonus -F, savings +F, medal +T, party +S
work | tool | On the first working day | 1 pen | pen, wrench -L, notebook +L, tablet -T
work | boss | In a different firm | 0 | mentor +L, rebel +B, chairman +T, partner +S
work | shift | In the working week | 3 morning | morning, night +B, weekend +S, flexible +C
work | project | With one free month | 0 | bridge -L, novel +C, encyclopedia +L, orchard +N
values | virtue | In a good person | 1 honesty | honesty, courage +B, prudence -B, modesty +F
values | goal | In the long run | 0 | wisdom +L, fame +S, riches -F, health +H
values | gift | For a birthday | 2 flowers | flowers, perfume -F, socks +F, poem +C
values | house rule | In a shared flat | 1 fairness | fairness, neatness -C, freedom +C, respect +T
values | hero | In the old stories | 0 | explorer +B, healer +H, inventor -T, saint +T
values | celebration | On the last evening of the year | 0 | fireworks +B, banquet -F, vigil +T, gathering +S
values | news page | In the daily paper | 2 weather | weather, science +L, gossip +S, comics +C
values | book | At bedtime | 0 | thriller +B, manual -L, biography +L, poetry +C
chance | number | Without thinking | 1 seven | three, seven, nine, twelve
chance | hand | With closed eyes | 2 right | right, left, both, neither
chance | door | In an empty corridor | 0 | first, second, third, last
chance | side of the coin | Before the toss | 1 heads | heads, tails, edge
chance | raffle ticket | At the village fair | 0 | green, yellow, pink, brown
chance | direction | At an unknown crossing | 1 north | north, south, east, west
chance | appointment day | At the dentist | 2 Tuesday | Monday, Tuesday, Thursday, Friday
chance | queue | At the counter | 3 nearest | nearest, farthest, middle
"""
# Sentences that have no bearing on anybody's preferences.
FILLER = """
It rained a little again.
The train was late again today.
A new bakery opens next month.
The streets are calm this week.
Somebody painted the old fence.
The clock in the tower stopped.
There was fog over the river.
The roof over there needs tiles.
A parcel arrived two days ago.
The lift is out of order.
The moon looks bright just now.
Somebody forgot the keys again.
The road is closed for repairs.
A letter came with the post.
The power went out for an hour.
Leaves cover the path to the station.
The printer has run out of paper.
They are building a school across the river.
"""
