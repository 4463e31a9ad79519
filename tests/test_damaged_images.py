"Damaged images and .npz files: each is read, or refused by one clear error; nothing of the user's is touched."
import io, os, threading, zipfile

import numpy as np
import pytest
import torch
from PIL import Image

from robustnb import data, interop

FORMATS = dict(png='PNG', jpg='JPEG', gif='GIF', bmp='BMP', tiff='TIFF', webp='WEBP', ppm='PPM', eps='EPS', pdf='PDF')
MODES = 'L', 'RGB', 'RGBA', 'LA', 'P', '1'
HEADS = [b'\x89PNG\r\n\x1a\n', b'\xff\xd8\xff\xe0', b'GIF89a', b'BM', b'II*\0', b'RIFF\0\0\0\0WEBP',
         b'P6 3 3 255\n', b'%!PS-Adobe-3.0 EPSF-3.0\n', b'PK\3\4']


def noise(rng, *shape): return rng.integers(0, 256, shape, dtype=np.uint8)

def encoded(rng, kind, mode):
    "Bytes of a random image of 12x9 pixels."
    if kind in ('jpg', 'ppm', 'eps', 'pdf'): mode = 'RGB'
    if (kind, mode) == ('bmp', 'LA'): mode = 'RGBA'
    image = Image.fromarray(noise(rng, 9, 12, 4)).convert(mode)
    out = io.BytesIO()
    image.save(out, FORMATS[kind])
    return out.getvalue()

def npz_bytes(rng, packed=False, **more):
    out = io.BytesIO()
    arrays = dict(images=noise(rng, 6, 5, 5, 3), labels=np.arange(6) % 3, class_names=['a', 'b', 'c']) | more
    (np.savez_compressed if packed else np.savez)(out, **arrays)
    return out.getvalue()

def flipped(rng, content):
    raw = bytearray(content)
    for i in rng.integers(0, len(raw), rng.integers(1, 9)): raw[i] ^= 1 << rng.integers(8)
    return bytes(raw)

def cut(rng, content): return content[:rng.integers(0, len(content))]

def swapped_head(rng, content):
    head = HEADS[rng.integers(len(HEADS))]
    return head + content[len(head):]

def overwritten(rng, content):
    "A stretch of random bytes in the middle: wrong sizes, wrong lengths of chunks."
    raw = bytearray(content)
    start = rng.integers(0, len(content))
    raw[start:start + 8] = noise(rng, len(raw[start:start + 8])).tobytes()
    return bytes(raw)

def random_bytes(rng, content): return noise(rng, rng.integers(0, 300)).tobytes()

DAMAGE = flipped, cut, swapped_head, overwritten, random_bytes

def within(seconds, function):
    "The result of `function`, or its exception; a failure if it hangs."
    found = []
    def run():
        try: found.append(function())
        except BaseException as e: found.append(e)
    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), 'hangs'
    return found[0]

def is_answer(found, shape):
    is_images = isinstance(found, interop.Images) and found.x.dtype == torch.uint8
    return is_images and tuple(found.x.shape[1:]) == shape

def check(path, found, shape):
    "Images of the right form, or an error of the right kind that names the file."
    if is_answer(found, shape): return True
    assert isinstance(found, (ValueError, FileNotFoundError)), f'{type(found).__name__}: {found}'
    assert path.name in str(found)
    return False


def damage_images(tmp_path, n):
    "Read `n` folders of one damaged and one sound image; the answers say how many were read."
    read = 0
    kinds = list(FORMATS)
    for seed in range(n):
        rng = np.random.default_rng(seed)
        kind = kinds[seed % len(kinds)]
        content = DAMAGE[seed % len(DAMAGE)](rng, encoded(rng, kind, MODES[seed % len(MODES)]))
        suffix = list(FORMATS)[rng.integers(7)]   # any of ours
        path = tmp_path/str(seed)/'a'/f'odd{seed}.{suffix}'
        path.parent.mkdir(parents=True)
        (tmp_path/str(seed)/'b').mkdir()
        path.write_bytes(content)
        sound = Image.fromarray(noise(rng, 8, 8, 3))
        sound.save(tmp_path/str(seed)/'b'/'sound.png')
        found = within(60, lambda: interop.read_images(tmp_path/str(seed), size=8, ground='white'))
        if check(path, found, (3, 8, 8)):
            read += 1
            neighbour = found.x[1].permute(1, 2, 0)
            np.testing.assert_array_equal(neighbour, np.asarray(sound))
    return read

def damage_npz(tmp_path, n):
    read = 0
    for seed in range(n):
        rng = np.random.default_rng(10_000 + seed)
        path = tmp_path/f'odd{seed}.npz'
        path.write_bytes(DAMAGE[seed % len(DAMAGE)](rng, npz_bytes(rng, packed=seed % 2)))
        read += check(path, within(60, lambda: interop.read_images(path)), (3, 5, 5))
    return read

def test_damaged_images(tmp_path): assert 0 < damage_images(tmp_path, 180) < 180
def test_damaged_npz(tmp_path): assert 0 < damage_npz(tmp_path, 120) < 120

@pytest.mark.slow
def test_many_damaged_images(tmp_path): assert 0 < damage_images(tmp_path, 1000) < 1000

@pytest.mark.slow
def test_many_damaged_npz(tmp_path): assert 0 < damage_npz(tmp_path, 700) < 700

def test_sound_images_are_read_right(tmp_path):
    "The positive control: every format and mode without damage."
    rng = np.random.default_rng(0)
    expected = []
    # Pillow writes what is transparent as a channel without a meaning; refused
    unclear = {('bmp', 'RGBA'), ('bmp', 'LA')}
    pairs = [(kind, mode) for kind in FORMATS if kind not in ('eps', 'pdf') for mode in MODES]
    for i, (kind, mode) in enumerate(pair for pair in pairs if pair not in unclear):
        path = tmp_path/'a'/f'{i:02}.{kind}'
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(encoded(rng, kind, mode))
        with Image.open(path) as image: on_white = image.convert('RGBA')
        whole = Image.alpha_composite(Image.new('RGBA', on_white.size, 'white'), on_white).convert('RGB')
        wide = whole.resize((16, 12), Image.Resampling.BILINEAR)   # 12x9 to a square of 12
        expected.append(np.asarray(wide.crop((2, 0, 14, 12))))
    found = interop.read_images(tmp_path, size=12, ground='white')
    np.testing.assert_array_equal(found.x.permute(0, 2, 3, 1), np.stack(expected))

def test_sound_npz_is_read_right(tmp_path):
    for packed in False, True:
        (tmp_path/'sound.npz').write_bytes(npz_bytes(np.random.default_rng(0), packed))
        found = interop.read_images(tmp_path/'sound.npz')
        np.testing.assert_array_equal(found.x.permute(0, 2, 3, 1), noise(np.random.default_rng(0), 6, 5, 5, 3))
        assert found.y.tolist() == [0, 1, 2]*2
        assert found.classes == ('a', 'b', 'c')
        assert found.notes == ()


# ---- what is no file, and what is too much

def refused(source, **options):
    "The text of the error, which must come within seconds."
    found = within(60, lambda: interop.read_images(source, **options))
    assert isinstance(found, (ValueError, FileNotFoundError)), found
    return str(found)

def test_pipes_and_devices_are_not_opened(tmp_path):
    (tmp_path/'photos'/'a').mkdir(parents=True)
    os.mkfifo(tmp_path/'photos'/'a'/'pipe.png')
    os.mkfifo(tmp_path/'pipe.npz')
    (tmp_path/'device.npz').symlink_to('/dev/zero')
    said = refused(tmp_path/'photos')
    assert 'pipe.png' in said and 'got a pipe, accepted: a regular file' in said
    for name in 'pipe.npz', 'device.npz': assert f'{name}: got a' in refused(tmp_path/name)
    raw = tmp_path/'MNIST'/'raw'
    raw.mkdir(parents=True)
    os.mkfifo(raw/'train-images-idx3-ubyte')
    with pytest.raises(FileNotFoundError): data.load('mnist', tmp_path, download=False)

def test_postscript_never_starts_ghostscript(tmp_path, monkeypatch):
    import subprocess
    started = []
    monkeypatch.setattr(subprocess, 'Popen', lambda *args, **kw: started.append(args))
    (tmp_path/'a').mkdir()
    (tmp_path/'a'/'page.png').write_bytes(encoded(np.random.default_rng(0), 'eps', 'RGB'))
    assert 'page.png' in refused(tmp_path) and not started

def bomb(path, **headers):
    "An .npz whose headers announce what they like; its arrays hold 8 bytes each."
    with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
        for name, (shape, kind) in headers.items():
            text = repr(dict(descr=kind, fortran_order=False, shape=shape)).encode() + b'\n'
            archive.writestr(f'{name}.npy', b'\x93NUMPY\1\0' + len(text).to_bytes(2, 'little') + text + bytes(8))

LIES = [((10**5, 10**5, 10**5), '|u1'), ((1,)*2000, '|u1'), ((), '|u1'), ((0, 0, 0), '|u1'), ((2**62,)*3, '|u1'),
        ((-8,), '|u1'), ((8,), '|O'), ((8, 1, 1), '<f8'), ((1,), '<U1000000000')]

@pytest.mark.parametrize('shape, kind', LIES)
def test_npz_bombs(tmp_path, shape, kind):
    bomb(tmp_path/'bomb.npz', images=(shape, kind), labels=((1,), '<i8'))
    assert 'bomb.npz' in refused(tmp_path/'bomb.npz')
    bomb(tmp_path/'names.npz', images=((1, 4, 2), '|u1'), labels=((1,), '<i8'), class_names=(shape, kind))
    assert 'names.npz' in refused(tmp_path/'names.npz')

def test_npz_larger_than_memory(tmp_path):
    "A megabyte that unfolds to a gigabyte is refused where memory is short, by the directory alone."
    with zipfile.ZipFile(tmp_path/'big.npz', 'w', zipfile.ZIP_DEFLATED) as archive:
        with archive.open('images.npy', 'w') as member:
            np.save(member, np.zeros((3000, 100, 100), np.uint8))
        with archive.open('labels.npy', 'w') as member: np.save(member, np.zeros(3000, int))
    assert len(interop.read_images(tmp_path/'big.npz').x) == 3000
    class Small:
        total = 10**7
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data.psutil, 'virtual_memory', Small)
        assert 'big.npz: images of 30 MB' in refused(tmp_path/'big.npz')

def test_odd_arrays_in_npz(tmp_path):
    images, labels = np.zeros((4, 3, 3), np.uint8), np.zeros(4, int)
    odd = [dict(images=np.uint8(3)), dict(labels=np.int64(0)), dict(class_names=np.array('cat')),
           dict(class_names=np.array([.5])), dict(class_names=np.array([b'cat'])),
           dict(images=images[:, :0]), dict(images=images[:0], labels=labels[:0]), dict(labels=labels - 1),
           dict(labels=labels + 3, class_names=['a']),
           dict(labels=labels.astype(float)), dict(labels=np.full(4, np.nan)), dict(labels=labels.astype(bool)),
           dict(labels=labels.astype(complex)),
           dict(labels=np.full(4, 2**63, np.uint64)), dict(labels=np.full(4, 2**40)),
           dict(images=np.zeros((4, 3, 3, 4), np.uint8)), dict(images=np.zeros((4, 3, 3, 2), np.uint8)),
           dict(class_names=['cat', 'cat']), dict(class_names=['caf\u00e9', 'cafe\u0301']),
           dict(class_names=['a\x07']), dict(notes=np.array(3))]
    for i, arrays in enumerate(odd):
        np.savez(tmp_path/f'odd{i}.npz', **(dict(images=images, labels=labels) | arrays))
        assert f'odd{i}.npz: ' in refused(tmp_path/f'odd{i}.npz')
    np.savez(tmp_path/'even.npz', images=images, labels=labels + 2, class_names=['a', 'b', 'c'])
    assert interop.read_images(tmp_path/'even.npz').y.tolist() == [2]*4

def test_wrong_labels_are_counted(tmp_path):
    np.savez(tmp_path/'some.npz', images=np.zeros((5, 2, 2), np.uint8), labels=[0, -1, 1, -1, 0])
    assert '2 of 5 lie below 0' in refused(tmp_path/'some.npz')
    np.savez(tmp_path/'some.npz', images=np.zeros((5, 2, 2), np.uint8), labels=[0, 7, 1, 2, 3], class_names=['a', 'b'])
    assert '3 of 5 labels are 2 or more' in refused(tmp_path/'some.npz')

def test_extreme_shapes(tmp_path):
    for name, size in dict(long=(30_000, 2), tall=(2, 30_000), large=(20_000, 20_000)).items():
        (tmp_path/name/'a').mkdir(parents=True)
        Image.new('1', size).save(tmp_path/name/'a'/'x.png')
        assert 'x.png' in refused(tmp_path/name, size=32)
    np.savez(tmp_path/'long.npz', images=np.zeros((1, 2, 3000), np.uint8), labels=[0])
    assert '3,000 x 2' in refused(tmp_path/'long.npz', size=32)
    (tmp_path/'wide'/'a').mkdir(parents=True)
    Image.new('L', (100, 1)).save(tmp_path/'wide'/'a'/'x.png')
    assert interop.read_images(tmp_path/'wide', size=32).x.shape == (1, 1, 32, 32)

def test_idx_bombs(tmp_path):
    import gzip
    for i, head in enumerate([(2**31, 2**31), (2**32 - 1,)*4, (1,)*200]):
        content = bytes([0, 0, 8, len(head)]) + np.array(head, '>u4').tobytes() + bytes(99)
        for suffix, raw in ('', content), ('.gz', gzip.compress(content)):
            path = tmp_path/f'odd{i}{suffix}'
            path.write_bytes(raw)
            with pytest.raises(ValueError, match=path.name): data.read_idx(path)
    zeros = tmp_path/'zeros.gz'   # announces 16 bytes, unfolds to 100 MB
    zeros.write_bytes(gzip.compress(bytes([0, 0, 8, 1, 0, 0, 0, 16]) + bytes(10**8), 1))
    with pytest.raises(ValueError, match='more bytes where the header announces 24'):
        data.read_idx(zeros)


# ---- nothing of the user's is touched

def listing(folder):
    "What lies in a folder: {path: (time of the last change, rights, content)}."
    state = lambda p: (p.lstat().st_mtime_ns, p.lstat().st_mode, p.read_bytes() if p.is_file() else None)
    return {str(p.relative_to(folder)): state(p) for p in folder.rglob('*')}

def test_a_home_is_left_as_it_was(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    home = tmp_path/'home'
    mine = '.cache/robustnb/mine'
    for path in f'{mine}/a/1.png', f'{mine}/b/1.png', 'photos/a/1.jpg', 'photos/b/deep/1.gif', 'photos/b/deep/2.gif':
        (home/path).parent.mkdir(parents=True, exist_ok=True)
        (home/path).write_bytes(encoded(rng, path[-3:], 'RGB'))
    for path in '.venv-3.11/pyvenv.cfg', '.my-data/x', 'photos/a/.hidden', 'photos/Thumbs.db', 'photos/notes.txt':
        (home/path).parent.mkdir(exist_ok=True)
        (home/path).write_text('mine')
    (home/'test.npz').write_bytes(npz_bytes(rng))
    (home/'photos'/'loop').symlink_to(home/'photos')
    (home/'photos'/'a'/'loop').symlink_to(home/'photos'/'a')
    monkeypatch.setenv('HOME', str(home))
    monkeypatch.setenv('XDG_CACHE_HOME', str(home/'.cache'))
    monkeypatch.delenv('ROBUSTNB_DATA', raising=False)
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match='photos/loop: class folder without images'):
        interop.read_images('photos/', size=8)
    (home/'photos'/'loop').unlink()
    before = listing(home)
    assert len(interop.read_images('mine').x) == 2 and len(interop.read_images('test.npz').x) == 6
    assert len(interop.read_images('photos/', size=8).x) == len(interop.read_images('~/photos', size=8).x) == 3
    assert len(interop.read_images('digits').x) == 359
    with pytest.raises(FileNotFoundError): data.load('nothing')
    with pytest.raises(ValueError, match='has one image'): data.load('mine')
    assert listing(home) == before


NOTHING = ['', None, 3, 'a'*300, '~nobody-of-that-name/x', 'no\0pe', '/dev/null', 'nothing', '/nothing.npz']

@pytest.mark.parametrize('source', NOTHING)
def test_sources_that_are_none(source): assert refused(source)


# ---- from the command line to the page

def test_audit_of_white_ink(tmp_path, monkeypatch, capsys):
    "Digits written in white on nothing: refused, and with their ground as right as the digits themselves."
    import json
    from safetensors.torch import save_file
    from robustnb import models, train
    from robustnb.cli import main
    monkeypatch.chdir(tmp_path)
    digits = data.load('digits')
    net = models.SmallCNN()
    train.fit(net, digits, train.Config('adam', lr=1e-3, epochs=5), device='cpu')
    save_file(net.state_dict(), 'net.safetensors')
    x, y = digits.x_test[:60], digits.y_test[:60]
    for i, (image, label) in enumerate(zip(x, y)):
        path = tmp_path/'ink'/str(label.item())/f'{i}.png'
        path.parent.mkdir(parents=True, exist_ok=True)
        alpha = Image.fromarray(image[0].numpy())
        Image.merge('LA', (Image.new('L', (8, 8), 255), alpha)).save(path)
    (tmp_path/'ink'/'notes.txt').write_text('x')
    command = 'audit net.safetensors --arch smallcnn --images ink --attack none --lipschitz 0 --bands 0 --variances .1'
    command += ' --device cpu --json'
    assert main(command.split()) == 2 and '60 images with transparent pixels' in capsys.readouterr().err
    assert main([*command.split(), '--ground', 'black']) == 0
    found = json.loads(capsys.readouterr().out)
    doubts = ['1 file skipped: notes.txt', '60 images composited on black']
    right = (net.eval()(data.to_float(x)).argmax(1) == y).double().mean().item()
    clean = found['metrics'][0]   # the first row is the accuracy on clean images
    assert found['notes'][:2] == doubts
    assert clean['metric'] == 'accuracy' and clean['value'] == pytest.approx(right)
    for page in 'audit.html', 'audit.md':
        text = (tmp_path/'audit'/page).read_text()
        assert all(doubt in text for doubt in doubts)
