# ruff: noqa: E501
"""What the guard looks for: cues with weights, as data. Patterns are for the folded view (lower case, no accents).

Every gap is bounded, so that a search takes time linear in the sentence. A weight says how sure a cue alone makes it
that a sentence speaks to a machine that reads: 4 (`guard.THRESHOLD`) is sure enough, 2 is enough behind a withheld
sentence. Documentation says "ignore", "you must", "the response" and "call the function" all the time, so those weigh
something only together with what belongs to a conversation.
"""

from __future__ import annotations

from typing import NamedTuple


class Cue(NamedTuple):
    """One thing to look for. `why`: what it is a sign of."""

    name: str
    weight: float
    pattern: str
    why: str


# Letters of other alphabets that are drawn like Latin ones, and marks like `<`, `|` and quotes; after NFKD and case.
LOOK_ALIKES = {
    **dict(zip("\u0430\u0435\u043e\u0440\u0441\u0443\u0445\u0456\u0455\u0458\u04bb\u0501", "aeopcyxisjhd")),
    **dict(zip("\u03b1\u03b5\u03bf\u03c1\u03c5\u03b9\u03ba\u03bd\u03c4\u03c7\u0131\u0261", "aeopuikvtxig")),
    **dict(zip("\u2039\u203a\u2329\u232a\u27e8\u27e9\u3008\u3009\u276e\u276f\u01c0\u2223\u2502", "<><><><><>|||")),
    **dict(zip("\u2018\u2019\u201c\u201d\u201e\u00ab\u00bb\u2013\u2014", '\'\'"""""--')),
}

_LT, _GT = "(?:<|&lt;)", "(?:>|&gt;)"
_TAGS = (
    "think|thinking|reason|answer|final_answer|tool_calls?|tool_responses?|tool_results?|tool_output|tool_code|tool_use|"
    "text_search|img_search|image_search|crop_search|information|function_calls?|function_results?|invoke|"
    "im_start|im_end|system_prompt|interpreter"
)
# Marks of chat templates (ChatML, Llama, Mistral, Gemma, GLM, DeepSeek, Phi) and of tool calls, ours and others'.
MARK = (
    rf"(?P<chat>{_LT}\s?\|[^|<>\n]{{1,40}}\|\s?{_GT}|<<\s?/?sys\s?>>|\[\s?/?(?:inst|system_prompt|available_tools)\s?\]"
    rf"|{_LT}/?(?:start|end)_of_turn{_GT}|\[gmask\])"
    rf"|{_LT}\s?(?P<close>/?)\s?(?P<tag>{_TAGS})\b[^<>\n]{{0,200}}{_GT}"
    r"|(?P<json>\{\s{0,20}[\"'](?:name|tool|tool_name|function|action)[\"']\s?:\s?[\"'][^\n\"']{0,80}[\"']\s?,\s{0,20}"
    r"[\"'](?:arguments|parameters|args|action_input|tool_input|input)[\"']\s?:)"
)
CHAT_END = r"(?:/|end|eot|eos)"

_IGNORE = (
    r"(?:ignor(?:e|ing)|disregard(?:ing)?|forget(?:ting)?|neglect|overrid(?:e|ing)|bypass|overlook|discard|dismiss|abandon|"
    r"erase|(?:pay|give) no (?:attention|heed) to|"
    r"(?:do not|don'?t|stop|never|cease|no longer|instead of) (?:follow|obey|listen|answer|comply|execut)\w*(?: to| with)?)"
)
_OF_BEFORE = (  # what tells the conversation's instructions from a packet's
    r"(?:previous(?:ly)?|prior|above|earlier|preceding|foregoing|original|initial|all|any|every|everything|your|you|my|these|"
    r"those|system|current|existing|former|past|other)"
)
_FILLER = (
    r"(?:of|the|and|or|that|what|which|we|i|he|she|they|was|were|have|has|had|been|me|us|safety|ethical|security|its|their|"
    r"in|given|said|user'?s?|developer|old|last|first|just|so|far)"
)
_ORDERS = (
    r"(?:instructions?|instructed|prompts?|prompted|directions?|directives?|guidelines?|guidance|rules|commands?|orders|"
    r"requests?|messages|conversations?|tasks?|quer(?:y|ies)|questions?|constraints|programming|training|polic(?:y|ies)|"
    r"assignments?|told|said|restrictions|safeguards|context)"
)
_AI = (
    r"(?:ai|a\.i\.|artificial intelligence|(?:large )?(?:vision[- ])?language model|l\.?l\.?m|vlm|chat ?bot|chatgpt|gpt-?\d\w*|"
    r"(?:ai|virtual|digital|helpful|chat|search|visual) (?:assistant|agent|model|system|bot))s?"
)
_AI_WEAK = r"(?:assistant|model|agent|bot|machine|robot|copilot|gemini|claude|llama|qwen|gpt)s?"
_OUT = (
    r"(?:repl(?:y|ies)|responses?|answers?|summary|outputs?|completion|final answer|answer box|conclusion|generation)"
)
_SAY = (
    r"(?:say|repl(?:y|ying)|respond(?:ing)?|answer(?:ing)?|outputs?|print|repeat|write|state|return|report|tell|inform|"
    r"claim|mention|declare|conclude|echo|produce|generate|give|speak|talk)"
)
_BEGIN = (  # where an order may begin
    r"(?:^|[.!?:;,>\])\"'|*#-]\s{0,3}|\b(?:and|then|please|just|now|must|should|will|shall|to|instead|simply|only|always|"
    r"immediately|you|need|not|never) )"
)

CUES = (
    Cue("mark", 6.0, MARK, "a chat template's or a tool call's own syntax has no place in a result"),
    Cue(
        "override",
        4.5,
        rf"\b{_IGNORE}(?:\W{{1,3}}{_FILLER}\b){{0,6}}\W{{1,3}}{_OF_BEFORE}\b(?:\W{{1,3}}(?:{_FILLER}|{_OF_BEFORE})\b){{0,8}}\W{{1,3}}{_ORDERS}\b",
        "the classical beginning: what was said before shall not count",
    ),
    Cue(
        "override-after",
        4.0,
        rf"\b{_IGNORE}(?: \w+){{0,3}} {_ORDERS}(?: \w+){{0,2}} (?:above|before|previously|earlier|so far|until now|you (?:were|have|got|received))\b",
        "the same, the other way round",
    ),
    Cue(
        "override-all",
        2.0,
        rf"\b(?:never ?mind|{_IGNORE} (?:all|everything|every|anything|the above|above|what|whatever|previous|prior|the (?:user|question|image|picture|search|results?|document|rest)))\b",
        "the same without an object that tells",
    ),
    Cue(
        "address",
        3.0,
        rf"(?:\b(?:dear|hey|hi|hello|attention|note|notice|message|instructions?|reminder|important|warning|urgent)(?: (?:to|for))?(?: (?:all|any|the|every|our|reading|this))*[ ,:!]{{1,3}}|\b(?:if|as|since|because) you(?: are|'re) (?:an? )?|\byou(?: are|'re) (?:now )?(?:an? |the |my )?(?:\w+ ){{0,2}}|\b(?:as|to|for) (?:an|any|all) )(?:\w+ ){{0,1}}{_AI}\b",
        "somebody who is not a person is spoken to",
    ),
    Cue(
        "address-begin",
        2.5,
        rf"^\W{{0,3}}(?:{_AI}|{_AI_WEAK})\s?[,:!]",
        "the same, at the beginning",
    ),
    Cue("machine", 1.0, rf"\b(?:{_AI}|{_AI_WEAK})\b", "a machine is talked about"),
    Cue(
        "you-are-now",
        2.5,
        r"\b(?:you(?: are|'re| will)(?: now)?(?: be)?(?: no longer)? (?:act(?:ing)?|pretend(?:ing)?|role-?play(?:ing)?|going to (?:act|pretend)|in (?:\w+ )?mode|dan\b|bound|restricted|free from)|you(?: are|'re) now (?:an? |the |in |free|my )|from now on|act as (?:if|a|an|the|my)|pretend (?:to|that|you)|role-?play as|(?:developer|debug|maintenance|admin|god|unrestricted|jailbreak|dan) mode)\b",
        "a new role is given",
    ),
    Cue(
        "your-output",
        2.0,
        rf"\b(?:your|the assistant'?s|the model'?s|the ai'?s|the agent'?s) (?:\w+ )?{_OUT}\b",
        "the reader is taken to be writing a reply",
    ),
    Cue(
        "order-output",
        2.5,
        rf"{_BEGIN}(?:add|include|incorporate|integrate|augment|enhance|modify|change|replace|substitute|remove|insert|append|prepend|embed|mention|use|provide|render|convert|scramble|jumble|misspell|introduce|rearrange|anagram|group|combine|encode|encrypt|translate|begin|start|end|finish|conclude|limit|set|make|put|write|weave|feature|place|in|supplement|expand|adjust|alter|complement|enrich|ensure|consider|emphasi[sz]e|highlight|format|hide|finali[sz]e)\b[^\n]{{0,100}}?\byour (?:\w+ )?{_OUT}\b",
        "what the reply shall hold",
    ),
    Cue(
        "say",
        2.0,
        rf"{_BEGIN}{_SAY} (?:only|just|exactly|simply|with(?: only| just| exactly)?|by saying|that|nothing but|the (?:following|phrase|word|words|sentence|string|text|user)|to the user|as follows|in (?:all caps|uppercase|base64|french|german|spanish|english|chinese))\b",
        "an order to speak",
    ),
    Cue("say-quoted", 2.0, rf"{_BEGIN}{_SAY}(?: \w+){{0,3}}\s?:?\s?[\"'`]\w", "words to be spoken"),
    Cue(
        "must-answer",
        2.5,
        rf"\b(?:you (?:must|should|shall|will|have to|need to|are to|can only|may only|are required to|are instructed to)(?: now| always| only| not| instead| immediately)* {_SAY}|always (?:answer|reply|respond|say)|(?:do not|don'?t|never) (?:answer|respond to|reply to|reveal|mention|tell|disclose) (?:the|this|these|your|any|that)\b)",
        "the same as a duty",
    ),
    Cue(
        "answer-is",
        2.0,
        r"\b(?:the |your )?(?:correct|right|final|only|true|expected|required|new|actual|real) (?:answer|response|reply|output)(?: \w+){0,4} (?:is|must be|should be|will be|shall be|has to be)\b|\bfinal answer\s?:|\banswer (?:is always|must be|should be|has to be|will be)\b",
        "the answer is given away",
    ),
    Cue(
        "user",
        1.5,
        r"\b(?:the|this|your) user(?:'s|s')? (?:\w+ )?(?:question|query|request|prompt|asked|asks|wants|message|instructions?|input|has asked|said|needs|image|data|is)\b|\b(?:tell|inform|ask|remind|convince|urge|direct|show|give|send|redirect|encourag\w+|suggest\w*|advise|recommend) (?:the |this |your |all )?users?\b",
        "somebody asked a question, and it was not the page",
    ),
    Cue(
        "secret",
        4.0,
        r"\b(?:reveal|show|print|output|display|repeat|leak|disclose|expose|give|tell|share|send|summari[sz]e|translate|encode|what (?:is|are|were))\b[^.!?\n]{0,40}\b(?:system (?:prompt|message|instructions?)|(?:your|initial|hidden|secret|original|starting)(?: \w+)? (?:instructions|prompt|rules|guidelines|configuration))\b",
        "the prompt is asked for",
    ),
    Cue(
        "prompt",
        1.5,
        r"\b(?:system|initial|original|hidden|developer) (?:prompt|message|instructions?)\b|\bprompt injection\b",
        "the prompt is talked about",
    ),
    Cue(
        "new-task",
        2.5,
        r"\b(?:(?:new|updated|revised|additional|special|hidden|secret|overriding|mandatory|latest)(?: \w+)? (?:instructions?|tasks?|directives?|objectives?|goals?|orders?|prompts?|rules?)\s?[:!.]|(?:here (?:is|are)|follow|obey|execute|complete|perform) (?:\w+ ){0,3}(?:new|these|the following|this|my) (?:instructions?|tasks?|directives?|orders?|commands?)|your (?:\w+ )?(?:new|real|only|actual|next|main|sole|true|primary) (?:task|goal|job|role|instructions?|objective|mission|purpose)|your (?:task|goal|job|mission|objective|role) (?:is|now|has))\b",
        "another task is set",
    ),
    Cue(
        "tool",
        2.0,
        r"\b(?:text_search|image_search|crop_search|img_search|web_search|search_web|bbox_2d|tool_calls?|function_calls?|tool_response|image_zoom_in_tool|code_interpreter)\b|\b(?:call|use|invoke|trigger|run|activate|execute) (?:the |your |a |an |this |any )?(?:\w+ ){0,2}(?:tools?|plugin|search (?:tool|function|engine))\b",
        "a tool shall be used",
    ),
    Cue(
        "no-search",
        2.5,
        r"\b(?:do not|don'?t|stop|never|no need to|without|cease|refrain from) (?:perform\w* |do\w* |use |us(?:ing) |mak\w+ |call\w* )?(?:any |more |further |other |additional |the |another )*(?:search(?:es|ing)?|tool(?:s| calls?)?|look(?:ing)? (?:up|further)|image_search|text_search)\b|\bno (?:further|more|additional|other) (?:search(?:es)?|tools?|tool calls?|information|research|steps) (?:is|are|needed|required|necessary|will)\b|\b(?:search|look) (?:for|up|instead for) [^.!?\n]{1,60}\binstead\b",
        "searching shall stop, or go elsewhere",
    ),
    Cue(
        "role",
        2.5,
        r"^\W{0,6}(?:#{1,6} ?|\*{1,2}|\[|\(|<|/)?(?:system|assistant|human|user|ai|developer|admin(?:istrator)?|tool|function|observation|thought|action(?: input)?|final answer|new instructions?|instructions?|system (?:message|prompt|note|notice|override|update|alert|instruction)|ai (?:instruction|note|assistant)s?)(?:\*{1,2}|\]|\)|>)?\s?:",
        "a header of a transcript",
    ),
    Cue(
        "role-mark",
        3.0,
        r"(?:^|\s)(?:#{2,6} ?(?:instruction|response|system|assistant|user|human|input|new task|task)s?\b|[\[<(](?:system|assistant|user|human|admin|developer)(?: \w+)?[\]>)])",
        "the same in a template's form",
    ),
    Cue(
        "end-of-data",
        3.0,
        r"\b(?:end of (?:the )?(?:document|results?|search results?|tool (?:response|output|result)|context|data|input|text|webpage|prompt|instructions?|observation|user input|system prompt|page|file|email|conversation|article|content|transcript|message)|(?:end|stop|start|begin)(?:ning)? of (?:the )?(?:new )?(?:user|system|instructions?|prompt)|task (?:is )?(?:complete[d]?|finished|done|accomplished)|(?:answer|response)\s?: task)\b",
        "the data is said to have ended here",
    ),
    Cue("boxed", 2.5, r"\\boxed\s?\{", "a finished answer in the form that graders read"),
    Cue(
        "loud",
        1.0,
        r"\b(?:important|attention|urgent|warning|stop|critical|alert|override|mandatory|emergency|immediately|instead)\b\s?[:!]|!!",
        "loudness",
    ),
    Cue(
        "exfiltrate",
        1.5,
        r"\b(?:send|forward|post|transmit|upload|exfiltrate|e-?mail|share|append|leak)\b[^.!?\n]{0,60}\b(?:password|credentials?|api key|conversation|chat history|personal (?:data|information)|secrets?|user'?s? (?:data|information|image|email|location))\b",
        "something shall leave the machine",
    ),
    Cue(
        "de",
        4.0,
        r"\b(?:ignorier\w*|vergiss|vergessen sie|missachte\w*|beachte\w* (?:\w+ )?nicht)\b[^.!?\n]{0,60}\b(?:anweisung\w*|instruktion\w*|vorgabe\w*|regeln|befehl\w*|prompt\w*|aufgabe\w*|bisherig\w*|vorherig\w*|obige\w*|gesagt)|\b(?:antworte|antworten sie|sag|sage|gib|schreibe?) (?:nur|ausschliesslich|immer|stattdessen)\b",
        "German: disregard, say only",
    ),
    Cue(
        "fr",
        4.0,
        r"\b(?:ignore[zr]?|oublie[zr]?|ne (?:tiens|tenez) (?:pas|aucun) compte)\b[^.!?\n]{0,60}\b(?:instructions|consignes?|directives?|ordres?|precedent\w*|demandes?)\b|\b(?:reponds|repondez|dis|dites|ecris|ecrivez) (?:uniquement|seulement|toujours|plutot)\b",
        "French",
    ),
    Cue(
        "es-pt-it",
        4.0,
        r"\b(?:ignor[aei]\w?|olvid[ae]\w?|omit[ae]|haz caso omiso|esqueca|dimentica\w*)\b[^.!?\n]{0,60}\b(?:instruc\w+|instruco\w*|istruzion\w+|indicaci\w+|ordenes|reglas|anterior\w*|precedent\w+)\b|\b(?:responde|responda|di|diga|escribe|rispondi) (?:solo|unicamente|siempre|apenas|somente|sempre)\b",
        "Spanish, Portuguese, Italian",
    ),
    Cue(
        "zh-ja",
        4.0,
        "(?:\u5ffd\u7565|\u65e0\u89c6|\u7121\u8996|\u5fd8\u8bb0|\u5fd8\u6389|\u4e0d\u8981\u7406\u4f1a|\u4e0d\u7406\u4f1a).{0,20}(?:\u6307\u4ee4|\u6307\u793a|\u63d0\u793a|\u547d\u4ee4|\u89c4\u5219|\u8981\u6c42|\u4e4b\u524d|\u4ee5\u4e0a|\u4e0a\u8ff0|\u524d\u9762)|(?:\u6307\u4ee4|\u6307\u793a|\u547d\u4ee4).{0,10}(?:\u7121\u8996|\u5ffd\u7565|\u65e0\u89c6)|(?:\u53ea|\u8bf7|\u5fc5\u987b)(?:\u56de\u7b54|\u56de\u590d|\u8f93\u51fa|\u8bf4)",
        "Chinese, Japanese",
    ),
)

# Without one of these words (or a bracket, or a letter that is not ASCII) no sentence can reach the threshold.
TRIGGERS = """ignore ignoring disregard disregarding forget forgetting neglect override overriding bypass overlook discard dismiss
    abandon erase attention heed follow obey listen answer answering comply execute never nevermind mind ai intelligence
    llm llms vlm model models chatbot chatbots bot bots chatgpt gpt assistant assistants agent agents your you must should
    reply replying respond responding response responses output say print repeat tell instruction instructions prompt
    prompts task tasks tool tools user users system search searches searching text_search image_search crop_search
    web_search img_search system_prompt mode pretend act boxed end final human developer admin administrator observation
    ignorez ignorer ignoriere ignorieren vergiss oubliez oublie ignora ignores olvida olvide ignorar esqueca dimentica
    missachte antworte reponds repondez responde responda rispondi override urgent important new send forward"""
