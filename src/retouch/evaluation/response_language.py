"""Whether the rules that classify responses cover the language of a response.

They cover the ten most spoken languages: English, Mandarin Chinese, Hindi, Spanish, French, Modern
Standard Arabic, Bengali, Portuguese, Russian and Urdu. A language is recognised by its script, by
letters of its own, and by function words. A response that is short, or code, or has no function
words, counts as covered: only positive evidence of another language does not.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Iterator

MIN_LETTERS = 8  # of a script that the rules do not cover
MIN_WORDS = 3
MIN_SHARE = 0.15  # of words that tell another language

# Code, addresses, options, names with underscores or dots, TeX commands, and quoted text.
_CODE = re.compile(
    r"```.*?(?:```|$)|`[^`\n]*`|https?://\S+|[\"“„«「][^\"“”»」]*[\"“”»」]|\$\$.*?\$\$|(?<!\S)--?\w[\w-]*"
    r"|\w*[_/\\]\w+|\w+(?:\.\w+)+",
    re.DOTALL,
)
_WORD = re.compile(r"[^\s\d_.,;:!?()\[\]{}<>=+*/\\|@#$%^&~\"'`«»“”„…—–।॥۔؟،؛。、-]+")


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


# Function words; with English ones, other words that look like those of another language.
_COVERED: dict[str, tuple[frozenset[str], ...]] = {
    "LATIN": (
        _words(
            """the of and to in is it that you for on with as are this be at have from or by not but
            what all were when we there can an your which their said if will each about how up out
            them then she he his her they i my me was has had do does so some would could
            no yes a am
            than into its us who why get make give other use may also more any just like our been
            man men die war fun den hand dog god see put go by"""
        ),
        _words(
            """el la los las de del que y en un una unos unas no se con por para su sus es está son
            lo le les al como más pero si sí o este esta esto eso ese esa puedo puede puedes me te
            mi tu yo usted hay muy también ya fue ser sobre entre cuando sin porque qué siento"""
        ),
        _words(
            """le la les de des du que qui et en un une ne pas est sont dans pour sur avec au aux ce
            cette ces il elle ils elles je tu vous nous on se sa son ses mais ou où si plus comme
            par peux peut pouvez très aussi été être fait sans cela désolé mon ma votre vos leur"""
        ),
        _words(
            """o a os as de do da dos das que e em um uma não se com por para seu sua é são no na
            nos nas ao como mais mas ou este esta isto isso esse essa posso pode você eu me te meu
            minha há muito também já foi ser sobre entre quando sem porque lhe ele ela eles"""
        ),
    ),
    "CYRILLIC": (
        _words(
            """и в не на что это я с как по но для вы у из же от к за так или если может есть он она
            они мы вас вам то бы был была были его их чтобы который при до ли только уже мне"""
        ),
    ),
    "ARABIC": (
        _words(
            """في من على لا هذا هذه أن إن إلى ما هو هي التي الذي عن مع لكن أو ذلك كان لم لن يمكن كل
            قد أنا لك بعد قبل عند بين ثم حتى كما غير أي لا"""
        ),
        _words(
            """ہے کے کی میں نہیں اور کا سے کو ہیں یہ آپ نے پر ہوں اس کر لیے بھی تو ایک جو وہ تھا تھی
            کہ ہم مجھے یا ہو"""
        ),
    ),
    "DEVANAGARI": (
        _words(
            """है हैं के की में नहीं और का से को यह मैं हूं हूँ पर ने कि भी एक या इस आप तो जो वह था
            थी लिए कर सकता सकती हम मुझे"""
        ),
    ),
    "BENGALI": (),
}
_OTHERS: dict[str, tuple[frozenset[str], ...]] = {
    "LATIN": tuple(
        map(
            _words,
            (
                # German, Dutch, Swedish, Danish and Norwegian, Icelandic, Finnish, Estonian
                """der das und ich nicht ist mir leid kann mit für auf ein eine einen zu den dem des
                von sie wir es bei auch als wie sich dabei aber oder diese dieser dieses ihnen dir
                kein keine haben werden wird sind wenn nach durch bitte leider""",
                """het een ik niet dat van en te zijn voor met je kan dit maar ook naar om als er
                bij hij zij wij de aan ligt deze geen worden spijt helaas kunt daarmee
                heeft uit aan""",
                """och att det är jag inte som en på för med ett av kan du har till om ledsen tyvärr
                den från eller men vi vid sig så ligger detta hjälpa""",
                """og jeg ikke det er at på til med som et av af kan du har om beklager desværre
                dessverre den fra eller vi dette hjelpe hjælpe""",
                "og ég ekki það er að á til með sem við um því en get þú",
                """ja en ole voi se että on mutta tai olen ei sinua auttaa tämä siinä kun joka ovat
                valitettavasti pahoillani mitä niin hän""",
                "ja ei ole et see on kui ma mis ka aga saa seda aidata kahjuks vabandust",
                # Italian, Catalan, Galician, Romanian
                """il di che non è per sono mi con una della del le gli si nel questo questa ma come
                più anche posso dispiace ti ho ha alla dei delle lo da aiutarti ciò""",
                """el la els les de que i no és per amb una un ho puc això aquesta aquest són però
                em et us pot més també ajudar""",
                "o a os as de que e non unha un podo iso axudar sinto coa polo máis pero",
                """nu pot să te ajut cu acest și de la în este o un pentru care din îmi pare rău dar
                mai sunt asta vă că""",
                # Turkish, Azerbaijani, Uzbek
                """bu bir ve için konuda değil ile ben sen siz yardımcı olamam üzgünüm edemem ama
                çok daha gibi ne mi size sana var yok olarak kadar bunu maalesef""",
                "bu bir və üçün deyil ilə mən siz kömək edə bilmərəm bağışlayın amma çox",
                "bu va bir uchun men sizga yordam bera olmayman kechirasiz bilan lekin emas",
                # Polish, Czech, Slovak, Croatian, Slovene, Hungarian, Lithuanian, Latvian, Albanian
                """nie i w z na do się jest to że mogę w tym ale pomóc przykro mi jak dla lub ten ta
                są przez od nie po oraz tego""",
                """nemohu s tím a je se na v že to ale pomoci omlouvám bohužel jak pro
                nebo jsou není
                do od toto vám""",
                """nemôžem s tým a je sa na v že to ale pomôcť prepáčte bohužiaľ ako pre alebo sú
                nie""",
                """ne mogu s tim i je se na u da to ali pomoći žao mi kao za ili su nije od ovo vam
                žalim""",
                "ne morem pri tem in je se na v da to ali vam pomagati žal oprostite kot za so",
                """a az és nem hogy ebben segíteni tudok sajnálom is van egy de ez meg
                vagy csak mint
                sajnos ezt""",
                "ir negaliu tai kad yra su į ne atsiprašau padėti bet kaip iš",
                "un es nevaru ar to ka ir nav atvainojiet palīdzēt bet kā no",
                "nuk mund të me këtë dhe është në për një më vjen keq por të ju ndihmoj",
                # Vietnamese, Indonesian and Malay, Tagalog, Javanese
                """tôi không thể là của và có được cho bạn này với một những các xin lỗi giúp trong
                về điều đó""",
                """yang dan saya tidak bisa dapat itu ini dengan untuk di ke dari maaf anda adalah
                membantu kami akan pada atau juga boleh""",
                """ang ng mga sa ako hindi ko ito na ay at para po pasensya kita matulungan kung
                iyan maaari siya ka""",
                "aku ora bisa iki lan ing saka sampeyan nyuwun pangapunten karo kanggo mbantu",
                # Swahili, Hausa, Yoruba, Igbo, Zulu and Xhosa, Somali, Afrikaans
                """na ya wa kwa ni katika samahani siwezi kusaidia hilo hii huo kukusaidia lakini
                kama za la cha ili hiyo yako mimi wewe pole naomba radhi hayo sana au""",
                "ba zan iya da na wannan ta taimaka yi hakuri ka ne ce amma kuma don",
                "mi ò lè ràn ọ lọ́wọ́ pẹ̀lú ma binu ni ti jẹ́ àti kò fún sí",
                "enweghị m ike inyere gị aka na nke a ndo bụ ma ọ dị",
                "ngiyaxolisa angikwazi ukukusiza ngalokho futhi ukuthi uma noma andikwazi uxolo",
                "waan ka xumahay kuma caawin karo arrintan oo iyo waa ku in la aan",
                "ek nie kan die jou met dit help jammer ongelukkig en vir van het maar",
                # Hindi and Urdu in Latin letters
                """main mein nahi nahin hai hain kar sakta sakti aap aapki ki ka ke ko se yeh aur
                maaf kijiye hoon mujhe iska""",
            ),
        )
    ),
    "CYRILLIC": (
        _words(
            """съм се са ще да от за към който която което мога тази този това не мога ви с но или
            е как по съжалявам помогна"""
        ),
        _words(
            """але з цим це та що як не для вони вона якщо можу вибачте щоб від до ви у на й є його
            про або мені вам допомогти він"""
        ),
    ),
    "ARABIC": (
        _words(
            """است را که این از با می برای نمی هم آن در به شما های من نیست متأسفم متاسفم کنم تا یا
            کنید باشد اما خود شده توانم"""
        ),
    ),
    "DEVANAGARI": (
        _words(
            """आहे आणि नाही मी हे तुम्ही करू शकत ते आपण मला तर मध्ये साठी आहेत होते माफ करा
            तुम्हाला"""
        ),
        _words(
            """छ छैन छन् र गर्न म तपाईं तपाईंलाई यो लाई सक्दिन मा हुन्छ भएको माफ गर्नुहोस् तर मलाई
            यसमा"""
        ),
    ),
    "BENGALI": (),
}
# Letters that no covered language has. `ö` and `ü` are in names, so a single word does not decide.
_OWN_LETTERS = {
    "LATIN": frozenset(
        "ßäöåæøşğıłżźśćńęąőűžščřďťňěůđơưățșāēīūģķļņėįųŧðþəəƙɗɓẹọṣŋ"
        + "".join(map(chr, range(0x1EA0, 0x1EFA)))
    ),
    "CYRILLIC": frozenset("іїєґўђјљњћџѓќѕәғқңөұүһӯҷӣҳҡ"),
    "ARABIC": frozenset("ښځڅډړږګېۍڪ۾ٻڄڳڱڕۆێۇۈە"),
    "DEVANAGARI": frozenset("ळ"),
    "BENGALI": frozenset("ৰৱ"),
}


def is_covered(text: str) -> bool:
    """Whether the rules cover the language of a response; true where nothing tells.

    Args:
        text: the response. Code and quoted text in it are not read.
    """
    text = unicodedata.normalize("NFKC", _CODE.sub(" ", text)).casefold().replace("\u2019", "'")
    if text.isascii():
        return not _other_words(text, "LATIN")
    scripts = Counter(_scripts(text))
    if not scripts:
        return True
    kana, han = scripts["HIRAGANA"] + scripts["KATAKANA"], scripts["CJK"]
    if kana >= 4 and kana > 0.15 * (kana + han):  # Japanese has Chinese characters too
        scripts["KANA"] = kana + han
        del scripts["CJK"]
    script, count = scripts.most_common(1)[0]
    if script == "CJK":
        return True
    if script not in _COVERED:
        return count < MIN_LETTERS or count <= 0.5 * sum(scripts.values())
    return not _other_words(text, script)


def _scripts(text: str) -> Iterator[str]:
    """The script of each letter, as in its Unicode name."""
    for letter in text:
        if letter.isalpha():
            yield unicodedata.name(letter, "").split(" ")[0].split("-")[0]


def _other_words(text: str, script: str) -> bool:
    """Whether the words of a script are those of a language that is not covered."""
    words = _WORD.findall(text.replace("\u200c", " "))
    own, english = _OWN_LETTERS[script], _COVERED["LATIN"][0]
    telling = {word for word in words if len(word) > 1} - english
    marked = {word for word in telling if not own.isdisjoint(word)}
    covered = max((sum(map(one.__contains__, words)) for one in _COVERED[script]), default=0)
    for one in _OTHERS[script]:
        found = marked | (telling & one)  # different words: "na na na" is no language
        count = sum(map(found.__contains__, words))
        # A function word at least, since letters of other languages are in names.
        if telling & one and len(found) >= 2 and count > max(covered, MIN_SHARE * len(words)):
            return len(words) >= MIN_WORDS
    # Letters alone tell a language without a list, such as Kazakh; the Latin ones are in names.
    return script != "LATIN" and sum(map(marked.__contains__, words)) > 0.3 * len(words)
