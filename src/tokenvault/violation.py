"""What a decision and an error say of one failed control."""

from __future__ import annotations

import attrs


@attrs.frozen
class Violation:
    """One control that a use failed.

    Attributes:
        control: the control's name, such as "merchants" or "limits".
        code: stable upper-case code, such as "MERCHANT_NOT_ALLOWED".
        message: what is allowed and what to do next; never a PAN or a whole token.
        response_code: the answer for ISO 8583 data element 39, two characters.
    """

    control: str
    code: str
    message: str
    response_code: str
