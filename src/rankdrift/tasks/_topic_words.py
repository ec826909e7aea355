"""The vocabulary of the built-in task ``topic``: what happens, where, and to whom, in four fields of life.

Each field has events (what the sentence is about), settings and descriptions (which only colour it).
"""

from __future__ import annotations

from dataclasses import dataclass

from rankdrift.tasks._phrases import phrases


@dataclass(frozen=True)
class Field:
    """One topic's phrases, in the past tense and third person."""

    events: tuple[str, ...]
    """Predicates that decide the topic: "missed the last penalty"."""
    settings: tuple[str, ...]
    """Adverbials of place or time: "outside the stadium"."""
    descriptions: tuple[str, ...]
    """Appositions of a person: "a retired goalkeeper"."""


BUSINESS = Field(
    events=phrases("""
        signed the lease on a second bakery, raised prices by four percent, sold a third of the shares,
        hired two clerks for the spring orders, paid the last invoice of the quarter,
        asked the bank for a larger loan, lost the contract to a cheaper rival,
        moved the warehouse closer to the port, bought out an old partner,
        closed the branch that never made a profit, cut the budget for the new catalogue,
        offered a discount on every unsold chair, turned a small loss into a small profit,
        found a buyer for the mill, settled the debts of the print shop,
        negotiated a better rate with the supplier, opened a stall in the market hall,
        doubled the sales of hand soap, signed up forty new subscribers,
        wrote off the cost of the broken stock, registered the family firm under a new name,
        paid the staff a bonus, cancelled the order for six hundred boxes, merged the two repair shops,
        took on a junior accountant, moved the savings into bonds, put the hotel up for sale,
        promised the investors a dividend, lowered the rent on the empty office,
        shipped the first crates abroad, outbid a larger company for the depot,
        renewed the insurance on the vans, asked every tenant for a deposit,
        doubled the wages of the night shift, filed the tax return a week late, sold the patent to a toy maker
    """),
    settings=phrases("""
        at the trade fair, before the shareholders' meeting, outside the bank, in the middle of an auction,
        on the day the shop reopened, near the stock exchange, behind the warehouse, during the summer sales,
        between two budget meetings, in the lobby of an insurance office, on payday,
        in the queue at the tax office, beside the cash desk, after the merger, on the last day of the lease,
        in the accountant's office
    """),
    descriptions=phrases("""
        a former bank clerk, the owner of two shops, a tax adviser, the heir to a paper mill, an estate agent,
        a retired accountant, the head of a small firm, a market trader, an insurance broker, a wine merchant,
        a cashier by day, the founder of a courier company, a landlord, a sales manager
    """),
)

HEALTH = Field(
    events=phrases("""
        finished the course of antibiotics, had two stitches in the left hand, slept through the fever,
        changed the dressing twice a day, lowered the dose to one tablet,
        waited three hours for the result of the scan, learned to walk again without a crutch,
        gave up salt for the sake of the heart, had a tooth pulled, caught the flu for the second time,
        had the plaster taken off early, sat up to ease the cough, swallowed the bitter syrup,
        wore a splint for the sprained wrist, had the ears tested, took a pill for the migraine,
        came round slowly from the anaesthetic, rubbed an ointment into the rash, had a blood sample taken,
        recovered from a mild concussion, was vaccinated against measles, rested the injured knee for a month,
        started the new treatment for asthma, measured the pulse every hour,
        booked an appointment about the back pain, cooled the burn under the tap,
        got new lenses for failing eyes, went home with a clean bill of health, complained of a sore throat,
        had the wound cleaned, asked for something against the nausea, broke out in hives,
        was told that the swelling would go down, brought the cholesterol under control,
        breathed more easily with the inhaler, had the appendix removed
    """),
    settings=phrases("""
        in the clinic's waiting room, after a visit to the dentist, next to the ambulance,
        during the night shift on the ward, on the way back from the pharmacy, outside the hospital,
        in the surgery's car park, before the operation, at the end of the flu season,
        beside the nurses' desk, in the corridor of the maternity ward, on the morning of the check-up,
        between two physiotherapy sessions, in the queue for a vaccine, after a week in bed, at the optician's
    """),
    descriptions=phrases("""
        a night nurse, the son of two doctors, a trained midwife, a children's dentist, a surgeon on leave,
        a student of pharmacy, a retired paramedic, the village doctor, an eye specialist, a hospital porter,
        a physiotherapist, the ward sister, a recent transplant patient, an allergy researcher
    """),
)

SPORTS = Field(
    events=phrases("""
        missed the last penalty, shaved two seconds off the record, came second in the relay,
        lost the set on a double fault, scored from the halfway line, was sent off before half-time,
        reached the final for the first time, finished the lap ahead of the favourite, let in three goals,
        won the doubles in straight sets, lifted the cup in pouring rain, was dropped from the squad,
        stayed in the saddle at the last fence, sprinted clear of the pack, beat the champion on points,
        threw the javelin past the old mark, equalised with a header, swam the fastest leg of the medley,
        blocked the shot at the buzzer, took the bronze medal, pulled a muscle in the warm-up but played on,
        trained twice a day for the qualifiers, fouled the striker at the edge of the box,
        moved up to fourth in the league, served two aces in a row, cleared the bar at the third attempt,
        signed for a second-division side, took the corner too quickly, broke away on the final climb,
        rowed in the winning eight, bowled out the captain, won the toss and batted first,
        dived to save the free kick, crossed the line in a new best time,
        led by six strokes after the front nine, was beaten on the rings by half a point
    """),
    settings=phrases("""
        outside the stadium, after the cup final, in the changing rooms, on the way to an away match,
        beside the running track, during the tournament, at the tennis club, before the kick-off,
        in the stands, on the eve of the regatta, behind the goal, next to the swimming pool, at half-time,
        between two training sessions, on the day of the marathon, in the players' tunnel
    """),
    descriptions=phrases("""
        a retired goalkeeper, the captain of the hockey team, a former sprinter, an Olympic rower,
        a swimming coach, a referee at weekends, the club's oldest member, a keen cyclist, a reserve defender,
        a figure skater, the daughter of a boxer, a golf instructor, a judo champion,
        a part-time football scout
    """),
)

NATURE = Field(
    events=phrases("""
        counted the herons at dawn, followed the tracks of a badger, planted a row of young oaks,
        heard the first cuckoo, found a nest full of speckled eggs, watched the salmon leap the weir,
        pulled thistles out of the meadow, set the injured owl free, photographed a rare orchid,
        cleared the ivy from the old pond, saw a fox cross the frozen lake,
        collected seeds from the wild poppies, waited for the bats to leave the cave,
        measured the girth of the chestnut tree, spotted an otter among the reeds,
        put a ring on the leg of a swallow, listened to the stags in the valley,
        let the hedge grow for the wrens, noticed that the glacier was thinner, dug a channel for the toads,
        left the fallen beech to the beetles, mapped the moss on the north slope,
        turned over stones to look for newts, kept bees at the edge of the heath,
        saw the tide uncover the mussel beds, saved the elms from the fungus,
        recorded the song of a nightingale, drew the wings of a dragonfly,
        warned of a drought in the wetlands, named a new kind of snail, watched the geese fly south,
        found wolf prints in the snow, waded into the marsh to count the frogs,
        protected the dunes from the wind, sowed clover on the bare hillside,
        identified the mushroom by its gills
    """),
    settings=phrases("""
        at the edge of the pine forest, beside the mountain stream, before the first frost,
        on the cliffs above the bay, in the middle of the moor, after the thunderstorm,
        under the old lime trees, during the rainy season, along the river bank, in the shade of the willows,
        on a foggy morning in the fens, at low tide, while the cranes were passing, near the waterfall,
        in the bluebell wood, by the beaver dam
    """),
    descriptions=phrases("""
        a park ranger, an amateur botanist, the keeper of a bird reserve, a forester,
        a collector of butterflies, a marine biologist, the last shepherd on the island, a beekeeper,
        a mountain guide, a wildlife painter, the gardener of an old estate, a student of lichens,
        a river warden, an expert on bats
    """),
)

ACTORS = phrases("""
    Marta, Owen, Priya, Tomas, Ingrid, Kofi, Leila, Bruno, Hana, Desmond, Yara, Felix, Noor, Callum, Rosa,
    Viktor, Amina, Jonas, Beatriz, Kenji, Ruth, Samir, Elin, Marcus, Talia, Pavel, Grace, Idris, Lucia,
    Henrik, Mei, Arthur, Zofia, Luis, Nadia, Patrick, Simone, Dimitri, Asha, Gareth
""")

RELATIVES = phrases("""
    sister, brother, neighbour, cousin, best friend, colleague, flatmate, mother, father-in-law, grandson,
    niece, tenant, daughter, friend, former teacher, stepbrother
""")
