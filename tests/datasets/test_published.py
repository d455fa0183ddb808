"""Readers of the published layouts, over small data sets made here."""

import json
import pickle

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mixformer_jax.data.single_images import ImageSamples, ImagesConfig, open_images
from mixformer_jax.datasets.large_scale import read_numbers
from mixformer_jax.datasets.layout import PUBLISHED
from mixformer_jax.datasets.records import Dataset, TrackingSequence
from mixformer_jax.datasets.sequences import DatasetError, open_dataset
from mixformer_jax.datasets.vot import parse_region, region_box

SIZE = (24, 32)


def write_frames(folder, pattern, numbers):
    folder.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        cv2.imwrite(str(folder / (pattern % number)), np.full((*SIZE, 3), 5 * (number % 50), np.uint8))


def level(frame):
    return round(float(frame.mean()) / 5)


def boxes(count, separator=","):
    return "\n".join(separator.join(map(str, (i, 2, 10, 8))) for i in range(count)) + "\n"


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def write_lasot(root, name, count, in_class=True):
    folder = root / name.rpartition("-")[0] / name if in_class else root / name
    write_frames(folder / "img", "%08d.jpg", range(1, count + 1))
    write(folder / "groundtruth.txt", boxes(count))
    write(folder / "full_occlusion.txt", ",".join(["0"] * (count - 1) + ["1"]) + "\n")
    write(folder / "out_of_view.txt", ",".join(["1"] + ["0"] * (count - 1)) + "\n")
    return folder


@pytest.mark.parametrize("in_class", [True, False])
def test_lasot(tmp_path, in_class):
    for name in ("cat-2", "cat-10", "airplane-1"):
        write_lasot(tmp_path, name, 4, in_class)
    write(tmp_path / "att" / "cat-2.txt", "1,0,0,0,0,0,0,0,0,0,1,0,0,0\n")
    dataset = open_dataset("lasot", tmp_path)
    assert list(dataset.keys) == ["airplane-1", "cat-2", "cat-10"]
    sequence = dataset[1]
    np.testing.assert_array_equal(sequence.visible, [False, True, True, False])
    assert sequence.attributes == ("IV", "FM") and dataset[0].attributes is None
    assert level(sequence.frame(3)) == 4 and len(sequence) == 4
    assert level(pickle.loads(pickle.dumps(dataset))[1].frame(0)) == 1
    write(tmp_path / "testing_set.txt", "cat-10\nairplane-1\n")
    assert [each.name for each in open_dataset("lasot", tmp_path, split="test")] == ["cat-10", "airplane-1"]
    with pytest.raises(DatasetError, match="1118 of 1120 sequences have no folder, the first is airplane-2"):
        open_dataset("lasot", tmp_path, split="train")  # the published list, of which cat-2 is a part
    with pytest.raises(DatasetError, match=r"no split 'val'; known are: train, test"):
        open_dataset("lasot", tmp_path, split="val")


def test_lasot_errors_name_the_file(tmp_path):
    folder = write_lasot(tmp_path, "cat-2", 4)
    write(folder / "out_of_view.txt", "0,0,0\n")
    with pytest.raises(DatasetError, match=r"out_of_view\.txt: 3 labels for 4 frames"):
        open_dataset("lasot", tmp_path)[0]
    write(folder / "out_of_view.txt", "0,0,x,0\n")
    with pytest.raises(DatasetError, match=r"out_of_view\.txt, line 1, column 3: expected one integer, found 'x'"):
        open_dataset("lasot", tmp_path)[0]
    (folder / "img" / "00000004.jpg").unlink()
    with pytest.raises(DatasetError, match=r"groundtruth\.txt: 4 boxes for 3 frames"):
        open_dataset("lasot", tmp_path)[0]
    write(tmp_path / "att" / "cat-2.txt", "1,0\n")
    write_lasot(tmp_path, "cat-2", 4)
    with pytest.raises(DatasetError, match="expected 14 times 0 or 1"):
        open_dataset("lasot", tmp_path)[0]


def test_lasot_ext_wants_all_of_it(tmp_path):
    write_lasot(tmp_path, "atv-1", 2)
    with pytest.raises(DatasetError, match=r"149 of 150 sequences have no folder, .* atv-2; use the reader lasot"):
        open_dataset("lasot_ext", tmp_path)
    assert list(open_dataset("lasot", tmp_path).keys) == ["atv-1"]


def test_published_splits_fit_together():
    exclude, validation = (read_numbers(PUBLISHED / f"got10k_{name}.txt") for name in ("vot_exclude", "votval"))
    assert (len(set(exclude)), len(set(validation))) == (1000, 1249)
    assert not set(exclude) & set(validation)
    assert max(exclude + validation) < 9335
    test = [line.split() for line in (PUBLISHED / "lasot_test.txt").read_text().splitlines()]
    assert len(test) == 70 and all(len(set(numbers)) == 4 for _, *numbers in test)


def test_got10k_splits(tmp_path):
    names = [f"GOT-10k_Train_{number:06d}" for number in range(1, 9336)]
    for name in names:
        (tmp_path / name).mkdir()
    write(tmp_path / "list.txt", "\n".join(names) + "\n")
    assert len(open_dataset("got10k", tmp_path)) == 9335
    train, val = (list(open_dataset("got10k", tmp_path, split).keys) for split in ("vottrain", "votval"))
    assert (len(train), len(val)) == (7086, 1249) and not set(train) & set(val)
    assert val[0] == "GOT-10k_Train_000002"  # the list counts from 0
    write(tmp_path / "mine.txt", "3\n0\n")
    assert list(open_dataset("got10k", tmp_path, list_file=tmp_path / "mine.txt").keys) == [names[3], names[0]]
    write(tmp_path / "mine.txt", f"{names[5]}\n")
    assert list(open_dataset("got10k", tmp_path, list_file=tmp_path / "mine.txt").keys) == [names[5]]
    write(tmp_path / "mine.txt", "GOT-10k_Train_999999\n")
    with pytest.raises(DatasetError, match="1 of 1 listed sequences are not in"):
        open_dataset("got10k", tmp_path, list_file=tmp_path / "mine.txt")
    (tmp_path / "list.txt").write_text("\n".join(names[:-1]) + "\n")
    with pytest.raises(DatasetError, match="9335 sequences; here are 9334"):
        open_dataset("got10k", tmp_path, split="vottrain")


def test_trackingnet(tmp_path):
    for chunk, name, count in (("TRAIN_0", "b", 3), ("TRAIN_0", "a", 2), ("TRAIN_11", "c", 2), ("TEST", "t", 4)):
        write_frames(tmp_path / chunk / "frames" / name, "%d.jpg", range(count))
        write(tmp_path / chunk / "anno" / f"{name}.txt", boxes(1 if chunk == "TEST" else count))
    assert [each.name for each in open_dataset("trackingnet", tmp_path)] == ["a", "b", "c"]
    (last,) = open_dataset("trackingnet", tmp_path, split="TRAIN_11")
    assert level(last.frame(1)) == 1
    (test,) = open_dataset("trackingnet", tmp_path, split="test")
    assert len(test) == 4 and np.isnan(test.boxes_xywh[1:]).all()
    write(tmp_path / "list.txt", "c\n")
    assert [each.name for each in open_dataset("trackingnet", tmp_path, list_file=tmp_path / "list.txt")] == ["c"]
    (tmp_path / "TRAIN_0" / "frames" / "b" / "2.jpg").unlink()
    with pytest.raises(DatasetError, match=r"b\.txt: 3 boxes for 2 frames"):
        open_dataset("trackingnet", tmp_path)[1]
    with pytest.raises(DatasetError, match=r"TEST/TEST/anno: no such folder"):
        open_dataset("trackingnet", tmp_path / "TEST")


def test_otb(tmp_path):
    for name, numbers, pattern in (("Boy", range(1, 4), "%04d.jpg"), ("David", range(298, 773), "%04d.jpg")):
        write_frames(tmp_path / name / "img", pattern, numbers)
    write(tmp_path / "Boy" / "groundtruth_rect.txt", boxes(3, separator="\t"))
    write(tmp_path / "David" / "groundtruth_rect.txt", boxes(471))
    write_frames(tmp_path / "Human4" / "img", "%04d.jpg", range(1, 3))
    write(tmp_path / "Human4" / "groundtruth_rect.1.txt", "")
    write(tmp_path / "Human4" / "groundtruth_rect.2.txt", boxes(2, separator=" "))
    write_frames(tmp_path / "Tiger1" / "img", "%04d.jpg", range(1, 9))
    write(tmp_path / "Tiger1" / "groundtruth_rect.txt", boxes(8))
    write(tmp_path / "anno" / "att" / "Boy.txt", "0,1,1,0,0,1,1,0,0,0,0\n")
    found = {each.name: each for each in open_dataset("otb100", tmp_path)}
    assert {name: len(each) for name, each in found.items()} == {"Boy": 3, "David": 471, "Human4_2": 2, "Tiger1": 3}
    assert level(found["David"].frame(0)) == 300 % 50
    assert level(found["Tiger1"].frame(0)) == 6 and found["Tiger1"].boxes_xywh[0, 0] == 5
    assert found["Boy"].attributes == ("OPR", "SV", "MB", "FM")


def test_uav123(tmp_path):
    write_frames(tmp_path / "data_seq" / "UAV123" / "bird1", "%06d.jpg", [*range(1, 6), *range(775, 779)])
    write_frames(tmp_path / "data_seq" / "UAV123" / "bike1", "%06d.jpg", range(1, 3))
    anno = tmp_path / "anno" / "UAV123"
    write(anno / "bird1_1.txt", boxes(5))
    write(anno / "bird1_2.txt", "NaN,NaN,NaN,NaN\n" + boxes(3))
    write(anno / "bike1.txt", boxes(2))
    write(anno / "att" / "bike1.txt", "1,0,0,0,0,0,0,0,0,0,0,1\n")
    bike, first, second = open_dataset("uav123", tmp_path)
    assert (bike.attributes, first.attributes) == (("SV", "SOB"), None)
    assert (len(first), len(second)) == (5, 4) and np.isnan(second.boxes_xywh[0]).all()
    assert (level(first.frame(4)), level(second.frame(0))) == (5, 775 % 50)
    write(anno / "bike1.txt", boxes(1))
    with pytest.raises(DatasetError, match=r"bike1\.txt: 1 boxes for 2 frames"):
        open_dataset("uav123", tmp_path)[0]


def test_nfs_in_both_layouts(tmp_path):
    published, prepared = tmp_path / "published", tmp_path / "prepared"
    write_frames(published / "ball" / "30" / "ball", "%05d.jpg", range(1, 4))
    lines = [f'0 {i} 2 {i + 10} 12 {i} {int(i == 8)} 0 0 "ball"' for i in range(24)]
    write(published / "ball" / "30" / "ball.txt", "\n".join(lines))
    (ball,) = open_dataset("nfs", published)
    np.testing.assert_array_equal(ball.boxes_xywh, [[0, 2, 10, 10], [8, 2, 10, 10], [16, 2, 10, 10]])
    np.testing.assert_array_equal(ball.visible, [True, False, True])
    write_frames(prepared / "sequences" / "ball", "%05d.jpg", range(1, 4))
    write(prepared / "anno" / "nfs_ball.txt", boxes(3, separator="\t"))
    (ball,) = open_dataset("nfs", prepared)
    assert (ball.name, len(ball), level(ball.frame(2))) == ("ball", 3, 3)
    write(published / "ball" / "30" / "ball.txt", "0 1 2\n")
    with pytest.raises(DatasetError, match=r"ball\.txt, line 1: expected id xmin"):
        open_dataset("nfs", published)[0]


def test_vot(tmp_path):
    folder = tmp_path / "sequences" / "agility"
    write_frames(folder / "color", "%08d.jpg", range(1, 6))
    write(tmp_path / "sequences" / "list.txt", "agility\n")
    write(folder / "sequence", "name=agility\nfps=25\nchannels.color=color/%08d.jpg\n")
    regions = ["1,2,3,4", "0,0,10,0,10,5,0,5", "m3,4,4,2,1,2,3,1", "0", "m0,0,2,2,4"]
    write(folder / "groundtruth.txt", "\n".join(regions) + "\n")
    write(folder / "occlusion.tag", "0\n0\n1\n0\n0\n")
    write(folder / "camera_motion.tag", "0\n0\n0\n0\n0\n")
    (sequence,) = open_dataset("vot", tmp_path)
    expected = [[1, 2, 3, 4], [0, 0, 10, 5], [4, 4, 2, 2], [np.nan] * 4, [np.nan] * 4]
    np.testing.assert_array_equal(sequence.boxes_xywh, expected)
    assert (sequence.fps, sequence.attributes, level(sequence.frame(4))) == (25.0, ("occlusion",), 5)
    write(folder / "groundtruth.txt", "\n".join(regions[:-1]) + "\n1,2,3\n")
    with pytest.raises(DatasetError, match=r"groundtruth\.txt, line 5: 3 numbers; expected a code"):
        open_dataset("vot", tmp_path)[0]
    write(folder / "groundtruth.txt", "1,2,3,4\n\n" + "1,2,3,4\n" * 4)
    with pytest.raises(DatasetError, match=r"groundtruth\.txt, line 2: expected numbers .* found ''"):
        open_dataset("vot", tmp_path)[0]


def test_a_negative_size_in_vot_is_a_row_without_target(tmp_path):
    write_frames(tmp_path / "cup" / "color", "%08d.jpg", range(1, 4))
    write(tmp_path / "cup" / "groundtruth.txt", "3,4,5,6\n3,4,-5,6\n3,4,5,6\n")
    (cup,) = open_dataset("vot", tmp_path)
    np.testing.assert_array_equal(cup.has_target, [True, False, True])
    (fault,) = cup.faults
    assert fault.kind == "box empty" and fault.where.endswith("groundtruth.txt, line 2")


@pytest.mark.parametrize("listed", [True, False])
def test_vot_until_2016_has_frames_beside_the_ground_truth(tmp_path, listed):
    write_frames(tmp_path / "bag", "%08d.jpg", range(1, 4))
    write(tmp_path / "bag" / "groundtruth.txt", "12,20,12,10,24,10,24,20\n" * 3)
    write(tmp_path / "bag" / "occlusion.label", "0\n1\n0\n")
    # VOT2013 has rectangles.
    write_frames(tmp_path / "cup", "%08d.jpg", range(1, 3))
    write(tmp_path / "cup" / "groundtruth.txt", "3.5,4,5,6\n" * 2)
    if listed:
        write(tmp_path / "list.txt", "bag\ncup\n")
    bag, cup = open_dataset("vot", tmp_path)
    assert (len(bag), level(bag.frame(2)), bag.attributes, bag.fps) == (3, 3, ("occlusion",), 30)
    np.testing.assert_array_equal(bag.boxes_xywh[0], [12, 10, 12, 10])
    np.testing.assert_array_equal(cup.boxes_xywh, [[3.5, 4, 5, 6]] * 2)
    (tmp_path / "cup" / "00000002.jpg").unlink()
    with pytest.raises(DatasetError, match=r"groundtruth\.txt: 2 boxes for 1 frames"):
        open_dataset("vot", tmp_path)[1]


@pytest.mark.parametrize(
    ("channel", "pattern"),
    [
        ("color", "color/%08d.jpg"),
        ("color/", "color/%08d.jpg"),
        ("color\\%08d.jpg", "color/%08d.jpg"),
        ("%d.jpg",) * 2,
    ],
)
def test_vot_s_file_sequence_names_a_pattern_or_a_folder(tmp_path, channel, pattern):
    folder, _, name = pattern.rpartition("/")
    write_frames(tmp_path / "cup" / folder, name, range(1, 3))
    write(tmp_path / "cup" / "groundtruth.txt", "3.5,4,5,6\n" * 2)
    write(tmp_path / "cup" / "sequence", f"channels.color={channel}\n")
    assert level(open_dataset("vot", tmp_path)[0].frame(1)) == 2


@pytest.mark.parametrize(
    "text", ["m0,0,0,0,0,1", "m0,0,0,0", "m0,0,0,0,0", "m0,0,0,0,1", "m7,9,0,3,0,5", "m7,9,3,0,2", "m0,0,1,1,1"]
)
def test_a_mask_without_pixels_is_empty(text):
    assert np.isnan(region_box(parse_region(text))).all()


def test_a_mask_of_an_absurd_size_is_refused():
    with pytest.raises(ValueError, match="a mask of 9999999 x 9999999 pixels"):
        parse_region("m0,0,9999999,9999999,0,1")


def test_what_vots_has_and_this_reader_has_not_is_named(tmp_path):
    write_frames(tmp_path / "cup" / "color", "%08d.jpg", range(1, 3))
    write(tmp_path / "cup" / "groundtruth_red.txt", "3,4,5,6\n" * 2)
    (cup,) = open_dataset("vot", tmp_path)  # one object is one target
    np.testing.assert_array_equal(cup.boxes_xywh, [[3, 4, 5, 6]] * 2)
    write(tmp_path / "cup" / "groundtruth_blue.txt", "13,4,5,6\n" * 2)
    with pytest.raises(DatasetError, match=r"cup: several objects .* are not supported; here are blue, red"):
        open_dataset("vot", tmp_path)[0]
    (tmp_path / "cup" / "groundtruth_blue.txt").rename(tmp_path / "cup" / "groundtruth__ignore.txt")
    with pytest.raises(DatasetError, match=r"groundtruth__ignore\.txt: masks of what is to be ignored.* not supported"):
        open_dataset("vot", tmp_path)[0]


def test_the_toolkit_s_own_workspace(shared_data):
    workspace = shared_data.parent / "evalgold" / "vot_workspace"
    assert {each.name: len(each) for each in open_dataset("vot", workspace)} == {"ball": 48, "box": 40}
    assert open_dataset("vot", workspace)[0].frame(0).shape == (120, 160, 3)


@given(st.lists(st.booleans(), min_size=12, max_size=12).filter(any), st.integers(-5, 5), st.integers(-5, 5))
def test_a_mask_s_box_is_the_bound_of_its_pixels(bits, left, top):
    mask = np.array(bits).reshape(3, 4)
    runs, value = [0], False
    for bit in bits:
        if bit != value:
            runs.append(0)
            value = bit
        runs[-1] += 1
    text = f"m{left},{top},4,3," + ",".join(map(str, runs))
    rows, columns = np.nonzero(mask)
    expected = [left + columns.min(), top + rows.min(), np.ptp(columns) + 1, np.ptp(rows) + 1]
    np.testing.assert_array_equal(region_box(parse_region(text)), expected)


@given(st.text(alphabet="m0123456789,.-ex ", max_size=30))
def test_a_region_is_a_box_or_a_clear_error(text):
    try:
        box_xywh = region_box(parse_region(text))
    except ValueError as error:
        assert "expected" in str(error) or "mask" in str(error) or "too large" in str(error)
    else:
        assert box_xywh.shape == (4,)


def write_coco(root):
    names = {7: "000000000007.jpg", 9: "000000000009.jpg"}
    write_frames(root / "train2017", "%012d.jpg", names)
    annotations = [
        {"image_id": 9, "id": 31, "bbox": [1.5, 2, 10, 8], "iscrowd": 0},
        {"image_id": 7, "id": 32, "bbox": [3, 3, 5, 6], "iscrowd": 0},
        {"image_id": 9, "id": 30, "bbox": [4, 4, 6, 7], "iscrowd": 0},
        {"image_id": 7, "id": 33, "bbox": [0, 0, 9, 9], "iscrowd": 1},
        {"image_id": 7, "id": 34, "bbox": [0, 0, 0, 9], "iscrowd": 0},
    ]
    images = [{"id": number, "file_name": name} for number, name in names.items()]
    write(root / "annotations" / "instances_train2017.json", json.dumps({"images": images, "annotations": annotations}))


def test_coco(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    write_coco(tmp_path)
    dataset = open_dataset("coco", tmp_path)
    assert [each.name for each in dataset] == ["32", "30", "31"]  # by image
    still = dataset[2]
    assert still.is_still and level(still.frame(0)) == 9
    np.testing.assert_array_equal(still.boxes_xywh, [[1.5, 2, 10, 8]])
    (cached,) = (tmp_path / "cache" / "mixformer_jax").iterdir()
    assert [each.name for each in open_dataset("coco", tmp_path)[1:]] == ["30", "31"]
    cached.write_bytes(b"damaged")
    with pytest.raises(DatasetError, match="damaged; delete it"):
        open_dataset("coco", tmp_path)
    write(tmp_path / "annotations" / "instances_train2017.json", '{"images": []}')
    with pytest.raises(DatasetError, match="not COCO's instances: KeyError: 'annotations'"):
        open_dataset("coco", tmp_path)
    write(tmp_path / "annotations" / "instances_train2017.json", "[" * 100_000)
    with pytest.raises(DatasetError, match="not COCO's instances: RecursionError"):
        open_dataset("coco", tmp_path)
    with pytest.raises(DatasetError, match=r"val2017: no such folder"):
        open_dataset("coco", tmp_path, split="val2017")


def write_tfds(root, count=3):
    """A prepared data set, made without TensorFlow."""
    import tensorflow_datasets as tfds
    from array_record.python.array_record_module import ArrayRecordWriter
    from tensorflow_datasets.proto import tf_example_pb2

    root.mkdir(parents=True)
    features = tfds.features.FeaturesDict(
        {
            "image": tfds.features.Image(shape=(None, None, 3), encoding_format="jpeg"),
            "objects": tfds.features.Sequence({"bbox": tfds.features.BBoxFeature()}),
        }
    )
    features.save_config(str(root))
    writer = ArrayRecordWriter(str(root / "tiny-train.array_record-00000-of-00001"), "group_size:1")
    for index in range(count):
        example = tf_example_pb2.Example()
        pixels = cv2.imencode(".jpg", np.full((*SIZE, 3), 5 * index, np.uint8))[1].tobytes()
        example.features.feature["image"].bytes_list.value.append(pixels)
        example.features.feature["objects/bbox"].float_list.value.extend([0.25, 0.5, 0.75, 1.0, 0, 0, 0.5, 0.25])
        writer.write(example.SerializeToString())
    writer.close()
    split = {"name": "train", "shardLengths": [str(count)], "numBytes": "1"}
    split["filepathTemplate"] = "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}"
    info = {"name": "tiny", "version": "1.0.0", "fileFormat": "array_record", "splits": [split]}
    write(root / "dataset_info.json", json.dumps(info))


def test_tfds_without_tensorflow(tmp_path):
    write_tfds(tmp_path / "tiny" / "1.0.0")
    dataset = pickle.loads(pickle.dumps(open_dataset("tfds", tmp_path / "tiny" / "1.0.0")))
    still = dataset[2]
    assert len(dataset) == 3 and still.is_still and still.name == "train/2"
    np.testing.assert_array_equal(still.boxes_xywh, [[16, 6, 16, 12], [0, 0, 8, 12]])
    assert level(still.frame(1)) == 2
    with pytest.raises(DatasetError, match="no split 'test'; known are: train"):
        open_dataset("tfds", tmp_path / "tiny" / "1.0.0", split="test")
    with pytest.raises(DatasetError, match=r"no dataset_info\.json"):
        open_dataset("tfds", tmp_path / "tiny")


def test_images_of_a_prepared_data_set_serve_masked_autoencoders(tmp_path):
    root = tmp_path / "tiny" / "1.0.0"
    write_tfds(root)
    config = ImagesConfig(str(root), flip_probability=0.0)
    samples = pickle.loads(pickle.dumps(ImageSamples(config, open_images(config.root, config.split), 16, seed=0)))
    # Every image once an epoch.
    for first in (0, 3):
        drawn = [samples.sample(index)["search"] for index in range(first, first + 3)]
        assert {each.shape for each in drawn} == {(16, 16, 3)}
        assert sorted(level(each) for each in drawn) == [0, 1, 2]
    with pytest.raises(DatasetError, match="no split 'validation'"):
        open_images(config.root, "validation")


def test_a_data_set_reads_a_sequence_once_and_keeps_the_last_ones(tmp_path):
    read = []

    def read_one(key):
        read.append(key)
        return TrackingSequence(key, np.ones((1, 4)), np.zeros, 30.0, tmp_path)

    dataset = Dataset("any", tmp_path, ["a", "b", "c"], read_one, kept=2)
    assert [dataset[i].name for i in (0, 0, 1, 0, 2, 0, 1)] == ["a", "a", "b", "a", "c", "a", "b"]
    assert read == ["a", "b", "c", "b"]
    assert list(dataset[::-1].keys) == ["c", "b", "a"] and dataset[-1].name == "c"
