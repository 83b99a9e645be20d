#!/usr/bin/env python3
"""Writes crates/engine/src/auth/blocked.txt: passwords that are guessed first, folded (lower case, letters and digits only).

Made by rule from words below, keyboard walks and counting; nothing is taken from a published list. Run it after a change here.
"""

import pathlib

# What people choose: in the order of nothing in particular.
COMMON = """
password passwort motdepasse contrasena senha parola kennwort passcode passphrase passwd passw0rd secret geheim access login
logon signin welcome willkommen bienvenue bienvenido hello hallo bonjour letmein letmeinnow openup opensesame sesame changeme
changethis changeit change default temp temporary temppass test testing tester test1234 guest user username admin
administrator adminadmin root toor system sysadmin superuser super supervisor manager master owner operator service server
support helpdesk office company business internet network computer laptop desktop windows linux ubuntu debian android iphone
google facebook twitter youtube instagram netflix amazon microsoft apple samsung nokia sony nintendo playstation xbox pokemon
minecraft fortnite starwars startrek matrix superman batman spiderman ironman avengers hulk thor wolverine deadpool harrypotter
hogwarts gandalf frodo legolas mordor skywalker vader jedi yoda chewbacca zelda mario luigi sonic pikachu naruto dragonball
goku sasuke monkey dragon tiger lion eagle falcon wolf bear shark dolphin horse pony puppy kitten kitty doggy cookie biscuit
chocolate cheese banana apple orange cherry peach strawberry blueberry pumpkin pepper ginger cinnamon sugar honey butter coffee
whiskey vodka tequila guinness heineken budweiser corona football soccer baseball basketball hockey tennis cricket rugby golf
swimming running cycling racing ferrari porsche mercedes bmw audi volkswagen toyota honda yamaha suzuki kawasaki harley mustang
corvette camaro jaguar bentley lamborghini arsenal chelsea liverpool everton manchester barcelona realmadrid juventus milan
bayern dortmund ajax celtic rangers benfica yankees redsox dodgers cowboys steelers packers lakers bulls celtics warriors
sunshine moonlight starlight rainbow flower rose lily daisy orchid summer winter spring autumn january february march april
june july august september october november december monday tuesday wednesday thursday friday saturday sunday morning
midnight forever always love lovely lover loveme loveyou iloveyou iloveu iloveyoubaby mylove truelove lovelove baby babygirl
babyboy princess prince queen king angel angels heaven devil satan jesus christ jesuschrist godisgood godislove bless blessed
faith hope grace peace freedom liberty justice victory happy happiness smile lucky magic mystery shadow phantom ghost hunter
killer sniper soldier warrior ninja samurai knight wizard merlin pirate viking spartan trojan zeus apollo hercules athena
phoenix genesis infinity eternal universe galaxy planet earth mercury venus saturn jupiter neptune pluto orion diamond
crystal silver golden platinum emerald ruby purple yellow green blue black white orange red pink hotpink blackcat whitedog
trustno1 trustnoone whatever nothing something anything someone nobody everybody qwerty qwertz azerty asdf asdfgh zxcvbn
abcabc abcd abcde abcdef abcdefg alphabet onetwothree pass passpass pwd secure security secured safe safety private
confidential topsecret unknown mother father daddy mommy mamma papa brother sister family friend friends bestfriend
boyfriend girlfriend husband wife children money dollar euro bitcoin ethereum crypto wallet bank credit rich million
millionaire lottery poker casino jackpot music guitar piano drums metallica nirvana slipknot eminem beatles queen pinkfloyd
ledzeppelin acdc ironmaiden madonna beyonce rihanna bieber london paris berlin madrid rome vienna moscow tokyo beijing
shanghai newyork losangeles chicago boston texas florida california canada america england scotland ireland france germany
italy spain portugal poland russia china japan india brasil brazil mexico argentina australia turkey israel egypt africa
europe summer2020 winter2020 nevermind dontknow idontknow forgot forgotten remember remember me nopassword noaccess gohome
letmesee followme callme helpme fuckyou fuckoff asshole bitch bullshit sexy sexsex
""".split()

NAMES = """
alex alexander alexandra alexis alice amanda amy andrea andreas andrew angela anna anne anthony antonio ashley austin barbara
ben benjamin bernard bianca brandon brian bruno camille carlos carmen caroline catherine charles charlie chris christian
christina christopher claudia claire daniel daniela david dennis diana diego dominic donald edward elena elizabeth emily emma
eric erik eva felix fernando florian francesca francesco francisco frank gabriel george gerard giovanni giulia gloria hannah
hans harry heather helen henry ian isabel isabella ivan jack jackson jacob james jan jason jasmine jean jennifer jeremy
jessica joanna johannes john johnny jonas jonathan jordan jorge joseph joshua juan julia julian julie justin karen karl
katarina kate kathrin katie kevin kimberly klaus lars laura lauren leonardo linda lisa lorenzo louis lucas lucia luis luke
maggie marco marcus margaret maria marie mario mark martin martina mary matthew maximilian maxwell melissa michael michelle
miguel mike mohamed monica natalie natasha nathan nicholas nicole oliver olivia oscar pablo patricia patrick paul paula pedro
peter philip pierre rachel rebecca richard robert roberto robin roger roman ronald ruben ryan samantha samuel sandra sara
sarah scott sebastian sergio shannon sharon simon simone sofia sophie stefan stephanie stephen steven susan sven sylvia
taylor theresa thomas tiffany timothy tobias tom tommy tyler valentina vanessa veronica victor victoria vincent vladimir
walter wendy william xavier yasmin yvonne zachary
""".split()

# Our own context: product, makers and models of laboratory robots, departments, things on the bench. Documented in
# docs/how-to/users.md.
CONTEXT = """
interlock interlocked interlockadmin interlockserver opentrons opentron hamilton tecan beckman eppendorf gilson sartorius
agilent waters shimadzu perkinelmer thermofisher merck roche novartis pfizer bayer basf ufactory xarm universalrobots kuka
fanuc abb franka panda raspberrypi raspberry arduino prefect bluesky mosquitto mqtt robot robots robotic robotics roboter
pipette pipettes pipetting liquidhandler autosampler centrifuge incubator spectrometer microscope chromatograph balance
titrator reactor synthesis chemistry chemist chemical biology biologist biotech pharma laboratory laboratories labor
laboratoire labadmin labuser labrobot labpassword lablab lab labs mylab ourlab thelab biolab chemlab wetlab drylab cleanroom
fumehood glovebox science scientist research researcher university universitaet institute professor doctor student postdoc
technician operator auditor viewer calibrator emergency emergencystop estop breakglass automation orchestrator device devices
deviceserver gateway controller workstation scheduler experiment experiments sample samples assay plate wellplate reagent
buffer ethanol acetone methanol
""".split()

PHRASES = """
thisisapassword thisismypassword thisisasecret thisisatest mypassword mypasswordis mypasswordismypassword yourpassword
ourpassword thepassword newpassword oldpassword firstpassword securepassword strongpassword verystrongpassword goodpassword
badpassword longpassword verylongpassword averylongpassword reallylongpassword simplepassword easypassword adminpassword
rootpassword userpassword testpassword temppassword temporarypassword defaultpassword secretpassword supersecretpassword
secretsecret topsecretpassword passwordformypassword ihatepasswords iforgotmypassword idontknowmypassword donttellanyone
changemeplease pleasechangeme changemenow pleaseletmein letmeinplease letmeintothelab openthedoor correcthorsebatterystaple
correcthorsebattery horsebatterystaple secureadminpassword secureoperatorpassword secureviewerpassword
thequickbrownfox thequickbrownfoxjumpsoverthelazydog quickbrownfox loremipsum loremipsumdolorsitamet tobeornottobe
tobeornottobethatisthequestion maytheforcebewithyou iamyourfather winteriscoming onceuponatime happybirthday happynewyear
merrychristmas inthebeginning ourfatherwhoartinheaven iloveyouforever iloveyousomuch iloveyoumorethananything
ilovemymother ilovemyfamily ilovechemistry ilovescience ilovemylab ilovemydog ilovemycat jesusismysavior jesuslovesyou
godblessyou inGodwetrust liveandletlive livelaughlove neversaynever dowhatyouwant donotenter accessdenied accessgranted
administratoradministrator helloworld hellohello goodmorning goodnight goodbye welcomehome welcometothejungle
stairwaytoheaven smellsliketeenspirit highwaytohell bohemianrhapsody abcdefghijklmno abcdefghijklmnop
abcdefghijklmnopqrstuvwxyz zyxwvutsrqponmlkjihgfedcba
""".split()

ROWS = ["1234567890", "qwertyuiop", "asdfghjkl", "zxcvbnm", "qwertzuiop", "yxcvbnm", "azertyuiop", "qsdfghjklm", "wxcvbn"]
COLUMNS = ["1qaz", "2wsx", "3edc", "4rfv", "5tgb", "6yhn", "7ujm", "8ik", "9ol", "0p"]
PADS = ["147", "258", "369", "159", "753", "789456123", "147258369", "321654987", "741852963", "963852741"]
ENDINGS = ["1", "12", "123", "1234", "12345", "123456", "007", "01", "11", "69", "99", "2000"]
YEARS = [str(year) for year in range(2015, 2031)]


def walks():
    """Runs along rows, both ways, and joined rows; columns one after another."""
    for row in ROWS:
        for line in (row, row[::-1]):
            for begin in range(len(line)):
                for end in range(begin + 5, len(line) + 1):
                    yield line[begin:end]
    letters = ROWS[1:4]
    for joined in ("".join(letters), "".join(reversed(letters)), "".join(letters)[::-1], "qwertzuiopasdfghjklyxcvbnm"):
        for begin in range(0, len(joined)):
            for length in (10, 12, 14, 15, 16, 18, 20, 26):
                if begin + length <= len(joined):
                    yield joined[begin:begin + length]
    for first in range(len(COLUMNS)):
        for last in range(first + 1, len(COLUMNS) + 1):
            run = COLUMNS[first:last]
            yield "".join(run)
            yield "".join(part[::-1] for part in run)
            yield "".join(reversed(run))
    for row in ("1234567890", "0987654321"):
        for keys in (ROWS[1], ROWS[2], ROWS[3]):
            for length in range(3, 8):
                yield "".join(a + b for a, b in zip(row[:length], keys[:length]))
                yield row[:length] + keys[:length]
                yield keys[:length] + row[:length]
    for pad in PADS:
        yield pad * 3
        yield pad + pad


def made():
    words = {word.lower() for word in COMMON + NAMES + CONTEXT}
    yield from words
    yield from (phrase.lower() for phrase in PHRASES)
    yield from walks()
    for word in words:
        for ending in ENDINGS[:6]:
            if len(word) + len(ending) >= 8:
                yield word + ending
    for word in ("password", "passwort", "welcome", "summer", "winter", "spring", "autumn", "admin", "operator", "interlock",
                 "opentrons", "robot", "robotics", "laboratory", "labadmin", "chemistry", "science", "research", "secret",
                 "letmein", "changeme", "qwerty", "company", "office", "test", "user", "default", "system", "master"):
        for year in YEARS:
            yield word + year
            yield year + word
        for ending in ENDINGS:
            yield word + ending


def main():
    here = pathlib.Path(__file__).resolve().parent.parent
    fold = lambda text: "".join(c for c in text.lower() if c.isalnum())
    entries = sorted({fold(text) for text in made() if len(fold(text)) >= 3})
    path = here / "crates/engine/src/auth/blocked.txt"
    path.write_text("\n".join(entries) + "\n", encoding="ascii")
    long = sum(len(entry) >= 8 for entry in entries)
    print(f"{len(entries)} entries, {long} of 8 characters or more, {path.stat().st_size} bytes")


if __name__ == "__main__":
    main()
