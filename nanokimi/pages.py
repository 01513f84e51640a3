"""Trajectories as one HTML page: what was asked and shown, what the model thought, called and answered, what it earned."""
import base64
import html
import io
from itertools import groupby

import numpy as np
from PIL import Image

STYLE = """body{font:15px/1.45 system-ui,sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem;background:Canvas;color:CanvasText}
h2{margin:2rem 0 .4rem;font-size:1.05rem}img{image-rendering:pixelated;height:96px;margin:0 .3rem .3rem 0;border:1px solid #8884}
pre{white-space:pre-wrap;margin:.3rem 0;padding:.5rem .7rem;border-left:4px solid #888;background:#8881;font-size:13px}
pre span{background:#8883}.good{border-color:#2a9d5c}.bad{border-color:#c8553d}b{font-weight:600}:root{color-scheme:light dark}"""


def write(path, groups, tokenizer, iteration, most=12):
    """One page with up to `most` groups: the best and the worst response of each."""
    parts = [f"<!doctype html><meta charset=utf-8><title>iteration {iteration}</title><style>{STYLE}</style><h1>Iteration {iteration}</h1>",
             "<p>Of each problem the best and the worst response. Grey blocks inside a response are what the tool gave back.</p>"]
    for group in groups[:most]:
        parts.append(f"<h2>{html.escape(group.item.ability)}, {group.item.modality}: {html.escape(group.problem.question)}</h2>")
        parts += [picture(frame) for clip in group.talks[0].prompt.clips for frame in clip.frames]
        parts += [f"<p>{html.escape(part)}</p>" for part in group.problem.context if isinstance(part, str)]
        rewards = " ".join(f"{reward:.2f}" for reward in group.rewards)
        parts.append(f"<p>wanted <b>{html.escape(group.problem.answer)}</b> · rewards {rewards}</p>")
        parts += [block(group, i, tokenizer) for i in dict.fromkeys((int(np.argmax(group.rewards)), int(np.argmin(group.rewards))))]
    path.write_text("\n".join(parts), encoding="utf-8")


def picture(frame):
    """uint8 (H, W, 3) as an inline image."""
    file = io.BytesIO()
    Image.fromarray(frame).save(file, "png")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}">'


def block(group, i, tokenizer):
    """One response: its text with special tokens, its length, its reward, pictures that the tool returned."""
    response, reward = group.responses[i], group.rewards[i]
    text = ""
    for own, part in groupby(zip(response.sampled, response.ids), key=lambda pair: pair[0]):
        said = html.escape(tokenizer.decode([token for _, token in part if token != tokenizer.media_pad]))
        text += said if own else f"<span>{said}</span>"
    crops = "".join(picture(frame) for clip in response.clips for frame in clip.frames)
    return f'<pre class="{"good" if reward >= 0.999 else "bad"}"><b>{reward:.2f}</b> · {response.written} tokens\n{text}</pre>{crops}'
