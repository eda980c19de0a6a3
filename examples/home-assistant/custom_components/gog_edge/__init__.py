"""The action gog_edge.ask: a question about a camera's picture, answered by `gog-edge serve` in the house."""

from __future__ import annotations

from typing import Any

import aiohttp
import homeassistant.helpers.config_validation as cv
import voluptuous as vol
from homeassistant.components.camera import async_get_image
from homeassistant.core import HomeAssistant, ServiceCall, SupportsResponse
from homeassistant.exceptions import HomeAssistantError
from homeassistant.helpers.aiohttp_client import async_get_clientsession

from .request import request, response

DOMAIN = "gog_edge"
SECONDS = 120
CONFIG_SCHEMA = vol.Schema(
    {DOMAIN: vol.Schema({vol.Required("url"): cv.url, vol.Optional("api_key"): cv.string})}, extra=vol.ALLOW_EXTRA
)
ASK_SCHEMA = vol.Schema(
    {
        vol.Required("entity_id"): cv.entity_domain("camera"),
        vol.Required("question"): cv.string,
        vol.Optional("deadline"): cv.string,
    }
)


async def async_setup(hass: HomeAssistant, config: dict[str, Any]) -> bool:
    """Called by Home Assistant for `gog_edge:` in its configuration."""
    url, key = config[DOMAIN]["url"], config[DOMAIN].get("api_key")
    session = async_get_clientsession(hass)

    async def ask(call: ServiceCall) -> dict[str, Any]:
        picture = await async_get_image(hass, call.data["entity_id"])
        sent = request(url, key, picture.content, call.data["question"], call.data.get("deadline"))
        try:
            async with session.post(**sent, timeout=aiohttp.ClientTimeout(total=SECONDS)) as reply:
                answer = await reply.json()
        except (aiohttp.ClientError, TimeoutError, ValueError) as e:
            raise HomeAssistantError(f"gog-edge at {url}: {e or type(e).__name__}") from e
        if reply.status != 200:
            raise HomeAssistantError(f"gog-edge at {url}: {answer.get('error', reply.status)}")
        return response(answer)

    hass.services.async_register(DOMAIN, "ask", ask, schema=ASK_SCHEMA, supports_response=SupportsResponse.ONLY)
    return True
