"""Code lists: currencies (ISO 4217, 2026, less metals, funds and test codes) and countries (ISO 3166-1).

Currencies that ended in 2025 (ANG, BGN) are listed: what was paid in them is still given back, and disputed.

A code that is not listed is refused, so that a slip of the pen is found where it is made. A code of tomorrow needs no
release: `add_codes` takes it. Codes are added, never taken away: domains under a withdrawn one must stay readable.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Final

from tokenvault.errors import InvalidInputError, boundary
from tokenvault.model.plain_text import plain_text

_CURRENCY: Final = re.compile(r"[A-Z]{3}")
_COUNTRY: Final = re.compile(r"[A-Z]{2}")

CURRENCIES: Final = frozenset(
    """
    AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD
    CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD
    GNF GTQ GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD
    KZT LAK LBP LKR LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO
    NOK NPR NZD OMR PAB PEN PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE
    SOS SRD SSP STN SVC SYP SZL THB TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VED VES VND
    VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG
    """.split()
)

COUNTRIES: Final = frozenset(
    """
    AD AE AF AG AI AL AM AO AQ AR AS AT AU AW AX AZ BA BB BD BE BF BG BH BI BJ BL BM BN BO BQ BR BS
    BT BV BW BY BZ CA CC CD CF CG CH CI CK CL CM CN CO CR CU CV CW CX CY CZ DE DJ DK DM DO DZ EC EE
    EG EH ER ES ET FI FJ FK FM FO FR GA GB GD GE GF GG GH GI GL GM GN GP GQ GR GS GT GU GW GY HK HM
    HN HR HT HU ID IE IL IM IN IO IQ IR IS IT JE JM JO JP KE KG KH KI KM KN KP KR KW KY KZ LA LB LC
    LI LK LR LS LT LU LV LY MA MC MD ME MF MG MH MK ML MM MN MO MP MQ MR MS MT MU MV MW MX MY MZ NA
    NC NE NF NG NI NL NO NP NR NU NZ OM PA PE PF PG PH PK PL PM PN PR PS PT PW PY QA RE RO RS RU RW
    SA SB SC SD SE SG SH SI SJ SK SL SM SN SO SR SS ST SV SX SY SZ TC TD TF TG TH TJ TK TL TM TN TO
    TR TT TV TW TZ UA UG UM US UY UZ VA VC VE VG VI VN VU WF WS XK YE YT ZA ZM ZW
    """.split()
)

_added: frozenset[str] = frozenset()  # of two letters and of three, beside those above


@boundary
def add_codes(*, currencies: Collection[str] = (), countries: Collection[str] = ()) -> None:
    """Accept further codes in this process: of ISO 4217 (three letters) and of ISO 3166-1 alpha-2.

    Every process that opens a vault calls it, when it starts: one that has not refuses to read a domain with such a
    code, and reads events with one all the same. What is accepted stays so.

    Raises:
        InvalidInputError: a code has another form, or the codes are no list, tuple or set; then none is added.
    """
    global _added  # noqa: PLW0603 # one assignment, so that other threads see all of them or none
    found = _checked(currencies, _CURRENCY, "a currency is three capital letters")
    _added |= found | _checked(countries, _COUNTRY, "a country is two capital letters")


def is_currency(code: str) -> bool:
    """Whether a text is a currency code that is accepted."""
    return code in CURRENCIES or (code in _added and len(code) == 3)


def is_country(code: str) -> bool:
    """Whether a text is a country code that is accepted."""
    return code in COUNTRIES or (code in _added and len(code) == 2)


def _checked(codes: Collection[str], form: re.Pattern[str], message: str) -> frozenset[str]:
    fits = isinstance(codes, list | tuple | set | frozenset)
    texts = [plain_text(code) for code in codes] if fits else []
    if not fits or not all(isinstance(text, str) and form.fullmatch(text) for text in texts):
        raise InvalidInputError(message)
    return frozenset(texts)
