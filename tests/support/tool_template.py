"""A chat template with reasoning and tool calls, and a function to call."""

TEMPLATE = (
    "{% for tool in tools or [] %}{{ tool.function.name }};{% endfor %}"
    "{% for message in messages %}<{{ 'bot' if message.role == 'assistant' else 'user' }}>{{ message.content or '' }}"
    "{% for call in message.tool_calls or [] %}<tool_call>{{ call.function.arguments.a }}</tool_call>{% endfor %}<end>"
    "{% endfor %}<bot>{# <think> </think> #}"
)
ADD = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "required": ["a"],
            "additionalProperties": False,
        },
    },
}
