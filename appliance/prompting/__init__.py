"""How a conversation becomes a prompt, and how generated text is read back.

Owns chat templates and the parsers of reasoning and tool calls. Knows text only: tokens are the
engine's business, and so is the model.
"""

from appliance.prompting.conversation import Conversation, Message, Tool, ToolCall
from appliance.prompting.hermes import HermesParser
from appliance.prompting.pieces import Piece, ToolCallPiece
from appliance.prompting.reasoning import ReasoningSplitter
from appliance.prompting.template import ChatTemplate, Prompt

__all__ = [
    "ChatTemplate",
    "Conversation",
    "HermesParser",
    "Message",
    "Piece",
    "Prompt",
    "ReasoningSplitter",
    "Tool",
    "ToolCall",
    "ToolCallPiece",
]
