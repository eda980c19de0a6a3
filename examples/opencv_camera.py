"""OpenCV: the newest frame of a camera or video again and again, with boxes and answer drawn on it by OpenCV.

python examples/opencv_camera.py --source 0                       # a window; Esc ends it
python examples/opencv_camera.py --source clip.mp4 --out seen.mp4
"""

import cv2
from given import agent, given

from gog_edge.integrations.plain import looked_at

ORANGE = (12, 89, 232)  # blue, green, red
args = given("What is the capital of the country of the second flag from the left?", source="0", out="")
writer = None
with agent(args) as policy, policy.watch(args.source, args.question, deadline="5s") as seen:
    for one in seen:
        picture = cv2.cvtColor(one.frame.pixels, cv2.COLOR_RGB2BGR)
        unit = picture.shape[1] / 800
        for box in looked_at(one.answer):
            x0, y0, x1, y1 = (round(v) for v in box.box.as_tuple())
            cv2.rectangle(picture, (x0, y0), (x1, y1), ORANGE, round(2 * unit))
            cv2.putText(picture, box.label, (x0, y0 - 6), cv2.FONT_HERSHEY_SIMPLEX, unit * 0.6, ORANGE, round(2 * unit))
        cv2.putText(
            picture, one.answer.text, (12, round(32 * unit)), cv2.FONT_HERSHEY_SIMPLEX, unit, ORANGE, round(3 * unit)
        )
        print(f"frame {one.number}: {one.answer.text or one.answer.stop.value} ({one.age:.2f} s old)")
        if args.out:
            size = picture.shape[1], picture.shape[0]
            writer = writer or cv2.VideoWriter(args.out, cv2.VideoWriter_fourcc(*"mp4v"), 2.0, size)
            writer.write(picture)
        else:
            cv2.imshow("gog-edge", picture)
            if cv2.waitKey(1) == 27:
                break
if writer is not None:
    writer.release()
