"""Data sets on disk: every layout, the order of search, damaged files, downloads.

All files are tiny and made on the spot."""
import gzip, os, pickle, struct, threading, time, urllib.request, zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from hypothesis import given, settings, strategies as st
from PIL import Image
from scipy.io import savemat

from robustnb import data
from robustnb.core import Stopwatch

REAL = data.data_root()


def pixels(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)

def idx(array):
    head = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, '>u4').tobytes()
    return head + array.astype(np.uint8).tobytes()

def write_idx(root, folder, images, labels):
    raw = root/folder/'raw'
    raw.mkdir(parents=True, exist_ok=True)
    for part in 'train', 't10k':
        (raw/f'{part}-images-idx3-ubyte').write_bytes(idx(images))
        (raw/f'{part}-labels-idx1-ubyte').write_bytes(idx(labels))

def write_npz(folder, images, labels, **more):
    folder.mkdir(parents=True, exist_ok=True)
    for split in 'train', 'test':
        np.savez(folder/f'{split}.npz', images=images, labels=labels, **more)

def write_tree(folder, classes, images, suffix='.png'):
    for name in classes:
        (folder/name).mkdir(parents=True, exist_ok=True)
        for i, image in enumerate(images): Image.fromarray(image).save(folder/name/f'{i}{suffix}')

def python2_pickle(batch):
    "Bytes of a dict of str to uint8 array or list, as Python 2 and an old NumPy pickled it (protocol 2, byte strings)."
    text = lambda s: b'U' + bytes([len(s)]) + s
    number = lambda n: b'J' + struct.pack('<i', n)
    out = b'\x80\x02}('
    for key, value in batch.items():
        out += text(key.encode())
        if isinstance(value, np.ndarray):
            raw = value.tobytes()
            shape = b'(' + b''.join(map(number, value.shape)) + b't'
            dtype = (b'cnumpy\ndtype\n(' + text(b'u1') + number(0) + number(1) + b'tR('
                     + number(3) + text(b'|') + b'NNN' + number(-1)*2 + number(0) + b'tb')
            content = b'T' + struct.pack('<i', len(raw)) + raw
            out += b'cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(' + number(0) + b't' + text(b'b') + b'tR('
            out += number(1) + shape + dtype + b'\x89' + content + b'tb'
        else:
            entries = [text(v.encode()) if isinstance(v, str) else number(v) for v in value]
            out += b'](' + b''.join(entries) + b'e'
    return out + b'u.'

def write_cifar10(root, dump):
    folder = root/'cifar-10-batches-py'
    folder.mkdir()
    rows = pixels(6, 10, 3072)
    names = [*(f'data_batch_{i}' for i in range(1, 6)), 'test_batch']
    for name, row in zip(names, rows):
        (folder/name).write_bytes(dump(dict(data=row, labels=list(range(10)))))
    return rows

def complaint(name, root, kind=ValueError, **options):
    with pytest.raises(kind) as error: data.load(name, root=root, download=False, **options)
    return str(error.value)


# ---- layouts

@pytest.mark.parametrize('dump', [python2_pickle, lambda batch: pickle.dumps(batch, protocol=4)],
                         ids=['python2', 'python3'])
def test_cifar10_pickles(tmp_path, dump):
    rows = write_cifar10(tmp_path, dump)
    found = data.load('cifar10', root=tmp_path, download=False)
    assert torch.equal(found.x_train, torch.from_numpy(rows[:5].reshape(50, 3, 32, 32)))
    assert torch.equal(found.x_test, torch.from_numpy(rows[5].reshape(10, 3, 32, 32)))
    assert found.y_train.tolist() == list(range(10))*5
    assert found.classes[9] == 'truck'
    assert found.lossless

def test_cifar100_names(tmp_path):
    folder = tmp_path/'cifar100'/'cifar-100-python'
    names = [f'class {i}' for i in range(100)]
    folder.mkdir(parents=True)
    for split in 'train', 'test':
        batch = dict(data=pixels(2, 3072), fine_labels=[3, 99], coarse_labels=[0, 1])
        (folder/split).write_bytes(python2_pickle(batch))
    assert data.load('cifar100', root=tmp_path, download=False).classes[42] == '42'
    (folder/'meta').write_bytes(python2_pickle(dict(fine_label_names=names)))
    found = data.load('cifar100', root=tmp_path, download=False)
    assert found.classes == tuple(names) and found.y_test.tolist() == [3, 99]
    (folder/'meta').write_bytes(b'\x80\x02}')
    assert 'meta: not a complete CIFAR file' in complaint('cifar100', tmp_path)

def test_pickles_cannot_run_code(tmp_path):
    class Attack:
        def __reduce__(self): return os.mkdir, (str(tmp_path/'attacked'),)
    write_cifar10(tmp_path, python2_pickle)
    (tmp_path/'cifar-10-batches-py'/'data_batch_3').write_bytes(pickle.dumps(dict(data=Attack(), labels=[0])))
    message = complaint('cifar10', tmp_path)
    assert 'data_batch_3: not a complete CIFAR batch' in message and 'mkdir' in message
    assert not (tmp_path/'attacked').exists()

def test_svhn(tmp_path):
    images = pixels(32, 32, 3, 12)
    labels = np.arange(1, 13, dtype=np.uint8)[:, None] % 10 + 1
    for split in 'train', 'test': savemat(tmp_path/f'{split}_32x32.mat', dict(X=images, y=labels))
    found = data.load('svhn', root=tmp_path, download=False)
    assert found.y_train.tolist() == [(i % 10 + 1) % 10 for i in range(1, 13)]   # label 10 is the digit 0
    assert found.x_test[7, 2, 5, 9] == images[5, 9, 2, 7]
    path = tmp_path/'test_32x32.mat'
    path.write_bytes(path.read_bytes()[:-1000])
    assert 'test_32x32.mat: not a complete MATLAB file' in complaint('svhn', tmp_path)

def test_caltech_leaves_background_out(tmp_path):
    folder = tmp_path/'caltech101'/'101_ObjectCategories'
    write_tree(folder, ['BACKGROUND_Google', 'ant', 'bass'], pixels(10, 20, 24, 3), '.jpg')
    Image.fromarray(pixels(20, 24)).save(folder/'ant'/'grey.jpg')   # a few of Caltech's images are grey
    found = data.load('caltech101', root=tmp_path, download=False, size=16, seed=3)
    assert found.classes == ('ant', 'bass')
    assert found.shape == (3, 16, 16)
    assert not found.lossless
    assert (len(found.x_train), len(found.x_test)) == (17, 4)
    again, other = (data.load('caltech101', root=tmp_path, size=16, seed=seed) for seed in (3, 4))
    assert torch.equal(found.x_test, again.x_test) and not torch.equal(found.x_test, other.x_test)
    half = data.load('caltech101', root=tmp_path, size=16, test_fraction=.5)
    assert len(half.x_test) == 11   # round(5.5) is 6 of the ants, and 5 bass

@pytest.mark.parametrize('folder', ['imagenette2-320', 'imagenette/imagenette2', 'imagenette'])
def test_imagenette_names(tmp_path, folder):
    for split in 'train', 'val':
        write_tree(tmp_path/folder/split, ['n03417042', 'n01440764'], pixels(2, 40, 30, 3), '.JPEG')
    found = data.load('imagenette', root=tmp_path, download=False)
    assert found.classes == ('tench', 'garbage truck') and found.shape == (3, 224, 224)
    assert found.y_train.tolist() == [0, 0, 1, 1]

def test_other_files_in_class_folders_are_left_alone(tmp_path):
    write_tree(tmp_path/'pets', ['cat', 'dog'], pixels(3, 8, 8))
    (tmp_path/'pets'/'cat'/'Thumbs.db').write_bytes(b'x')
    (tmp_path/'pets'/'.cache').mkdir()
    (tmp_path/'pets'/'README.txt').write_text('x')
    found = data.load('pets', root=tmp_path)
    assert found.classes == ('cat', 'dog') and len(found.x_train) + len(found.x_test) == 6

def test_lossy_images_are_counted(tmp_path):
    write_npz(tmp_path/'mine', pixels(4, 6, 6, 3), np.arange(4) % 2, lossy_index=np.array([1, 3]))
    found = data.load('mine', root=tmp_path)
    assert not found.lossless
    assert found.notes == ('2 images of train.npz marked lossy', '2 images of test.npz marked lossy')


# ---- where it is looked for

def test_order_of_search(tmp_path):
    "npz, then torchvision's layout, then a tree: each has its own pixel value, and is removed in turn."
    labels = np.arange(10)
    write_npz(tmp_path/'mnist', np.full((10, 28, 28), 1, np.uint8), labels)
    write_idx(tmp_path, 'MNIST', np.full((10, 28, 28), 2), labels)
    for split in 'train', 'test':
        write_tree(tmp_path/'mnist'/split, map(str, labels), np.full((1, 28, 28), 3, np.uint8))
    value = lambda: data.load('mnist', root=tmp_path, download=False).x_train.unique().tolist()
    assert value() == [1]
    for split in 'train', 'test': (tmp_path/'mnist'/f'{split}.npz').unlink()
    assert value() == [2]
    (tmp_path/'MNIST').rename(tmp_path/'mnist'/'MNIST')
    assert value() == [2]
    (tmp_path/'mnist'/'MNIST').rename(tmp_path/'elsewhere')
    assert value() == [3]

def test_uncompressed_idx_before_compressed(tmp_path):
    write_idx(tmp_path, 'FashionMNIST', np.full((10, 28, 28), 5), np.arange(10))
    raw = tmp_path/'FashionMNIST'/'raw'
    black = gzip.compress(idx(np.zeros((10, 28, 28))))
    for path in list(raw.iterdir()):
        packed = black if 'images' in path.name else gzip.compress(path.read_bytes())
        Path(f'{path}.gz').write_bytes(packed)
    assert data.load('fashionmnist', root=tmp_path).x_train.unique().tolist() == [5]
    (raw/'train-images-idx3-ubyte').unlink()
    assert data.load('fashionmnist', root=tmp_path).x_train.unique().tolist() == [0]

def test_root_argument_then_environment_then_cache(tmp_path, monkeypatch):
    for i, place in enumerate(['argument', 'environment', 'cache/robustnb']):
        write_npz(tmp_path/place/'mine', np.full((2, 4, 4), i, np.uint8), np.arange(2))
    monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path/'cache'))
    monkeypatch.setenv('ROBUSTNB_DATA', str(tmp_path/'environment'))
    value = lambda **kw: data.load('mine', **kw).x_train.unique().item()
    assert value(root=tmp_path/'argument') == 0 and value() == 1
    monkeypatch.delenv('ROBUSTNB_DATA')
    assert value() == 2
    monkeypatch.delenv('XDG_CACHE_HOME')
    assert data.data_root() == Path.home()/'.cache'/'robustnb'

def test_half_a_layout_is_an_error(tmp_path):
    write_npz(tmp_path/'mnist', pixels(10, 28, 28), np.arange(10))
    (tmp_path/'mnist'/'test.npz').unlink()
    write_idx(tmp_path, 'MNIST', pixels(10, 28, 28), np.arange(10))
    assert 'test.npz: missing' in complaint('mnist', tmp_path, FileNotFoundError)
    (tmp_path/'pets'/'train').mkdir(parents=True)
    assert 'neither val nor test' in complaint('pets', tmp_path, FileNotFoundError)


# ---- damaged files

@pytest.mark.parametrize('kept', [0, 1, 30, .3, .6, .9, .999])
def test_truncated_files_are_named(tmp_path, kept):
    "Cut after `kept` bytes, or after that part of the file."
    def cut(path):
        raw = path.read_bytes()
        path.write_bytes(raw[:kept if isinstance(kept, int) else int(kept*len(raw))])
    write_npz(tmp_path/'mine', pixels(10, 32, 32, 3), np.arange(10))
    write_cifar10(tmp_path, python2_pickle)
    write_idx(tmp_path, 'MNIST', pixels(10, 28, 28), np.arange(10))
    packed = tmp_path/'FashionMNIST'/'raw'/'train-images-idx3-ubyte.gz'
    write_idx(tmp_path, 'FashionMNIST', pixels(10, 28, 28), np.arange(10))
    packed.write_bytes(gzip.compress(packed.with_suffix('').read_bytes()))
    packed.with_suffix('').unlink()
    write_tree(tmp_path/'pets', ['cat', 'dog'], pixels(2, 40, 40, 3))
    files = dict(mine=tmp_path/'mine'/'test.npz',
                 cifar10=tmp_path/'cifar-10-batches-py'/'data_batch_2',
                 mnist=tmp_path/'MNIST'/'raw'/'t10k-images-idx3-ubyte',
                 fashionmnist=packed,
                 pets=tmp_path/'pets'/'dog'/'1.png')
    for name, path in files.items():
        # of a .png this cuts the end mark only: all pixels are there
        if name == 'pets' and kept == .999: continue
        data.load(name, root=tmp_path)
        cut(path)
        assert complaint(name, tmp_path).startswith(f'{path}')

@pytest.mark.parametrize('seed', range(8))
def test_flipped_bits_in_gz_are_found(tmp_path, seed):
    write_idx(tmp_path, 'MNIST', pixels(10, 28, 28), np.arange(10))
    path = tmp_path/'MNIST'/'raw'/'train-images-idx3-ubyte'
    packed = bytearray(gzip.compress(path.read_bytes()))
    packed[np.random.default_rng(seed).integers(20, len(packed) - 8)] ^= 1 << seed % 8
    Path(f'{path}.gz').write_bytes(packed)
    path.unlink()
    assert 'train-images-idx3-ubyte.gz: ' in complaint('mnist', tmp_path)

def test_objects_in_npz_are_refused(tmp_path):
    write_npz(tmp_path/'mine', np.array([None, 'x'], dtype=object), np.arange(2))
    assert 'must hold plain arrays' in complaint('mine', tmp_path)

def test_published_sets_keep_their_shape_and_classes(tmp_path):
    write_npz(tmp_path/'cifar100', pixels(25, 32, 32, 3), np.arange(25), class_names=[f'c{i}' for i in range(25)])
    assert '25 classes, but cifar100 has 100' in complaint('cifar100', tmp_path)
    write_npz(tmp_path/'mnist', pixels(10, 32, 32), np.arange(10))
    assert 'images are 1x32x32' in complaint('mnist', tmp_path)
    write_idx(tmp_path, 'FashionMNIST', pixels(11, 28, 28), np.arange(11))
    assert 'label 10, but there are 10 classes' in complaint('fashionmnist', tmp_path)

def test_huge_and_negative_labels(tmp_path):
    for labels in [0, 2**40], [-1, 0]:
        write_npz(tmp_path/'mine', pixels(2, 4, 4), np.array(labels))
        assert f'labels run from {labels[0]} to {labels[1]}' in complaint('mine', tmp_path)

def test_images_of_16_bits_are_refused(tmp_path):
    write_tree(tmp_path/'pets', ['cat', 'dog'], pixels(2, 8, 8))
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(tmp_path/'pets'/'cat'/'deep.png')
    message = complaint('pets', tmp_path)
    assert 'deep.png' in message and 'more than 8 bits' in message

def test_one_image_cannot_be_split(tmp_path):
    write_tree(tmp_path/'pets', ['cat', 'dog'], pixels(1, 8, 8))
    assert f'{tmp_path/"pets"}: class 0 has one image' in complaint('pets', tmp_path)

@pytest.mark.parametrize('name', ['', None, 3, 'a'*300])
def test_names_that_are_none(tmp_path, name):
    assert complaint(name, tmp_path).startswith('name: got')

def test_options_that_nothing_reads(tmp_path):
    write_npz(tmp_path/'mine', pixels(2, 4, 4), np.arange(2))
    assert 'takes no options' in complaint('mine', tmp_path, seed=1)
    assert "accepted: 'test_fraction', 'seed'" in complaint('digits', tmp_path, size=32)
    for fraction in 0, 1, float('nan'):
        assert 'test_fraction: got' in complaint('digits', tmp_path, test_fraction=fraction)


# ---- downloads

@pytest.mark.parametrize('name', data.KNOWN)
def test_no_network(tmp_path, monkeypatch, name):
    def closed(*args, **kwargs): raise URLError('network is unreachable')
    monkeypatch.setattr(urllib.request, 'urlopen', closed)
    with pytest.raises(FileNotFoundError) as error: data.load(name, root=tmp_path)
    message = str(error.value)
    assert 'network is unreachable' in message
    assert f'{name}/train.npz' in message
    assert data.KNOWN[name].layout in message
    assert str(tmp_path) in message
    assert 'download=False' in complaint(name, tmp_path, FileNotFoundError)

def test_root_that_is_a_file(tmp_path, monkeypatch):
    (tmp_path/'file').write_text('x')
    with pytest.raises((FileNotFoundError, NotADirectoryError), match='file'):
        data.load('mnist', root=tmp_path/'file')

def test_download_is_read_from_torchvisions_layout(tmp_path, monkeypatch):
    calls = []
    def svhn(root, split, download):
        calls.append((split, download))
        labels = np.arange(1, 11, dtype=np.uint8)[:, None]
        savemat(Path(root)/f'{split}_32x32.mat', dict(X=pixels(32, 32, 3, 10), y=labels))
    def mnist(root, download): write_idx(Path(root), 'MNIST', pixels(10, 28, 28), np.arange(10))
    def caltech(root, download):   # downloads, then fails as torchvision's class does without BACKGROUND_Google
        write_tree(Path(root)/'caltech101'/'101_ObjectCategories', ['ant', 'bass'], pixels(3, 8, 8, 3))
        raise ValueError('list.remove(x): x not in list')
    import torchvision
    monkeypatch.setattr(torchvision, 'datasets', SimpleNamespace(SVHN=svhn, MNIST=mnist, Caltech101=caltech))
    root = tmp_path/'new'
    assert len(data.load('svhn', root=root).x_test) == 10 and calls == [('train', True), ('test', True)]
    assert len(data.load('mnist', root=root).x_train) == 10
    assert data.load('caltech101', root=root).classes == ('ant', 'bass')
    data.load('svhn', root=root)
    assert len(calls) == 2   # what is there is not downloaded again

def test_two_that_find_nothing_download_once(tmp_path, monkeypatch):
    calls = []
    half = threading.Event()
    def svhn(root, split, download):
        if calls:   # the training images are there, the test images are not
            half.set()
            time.sleep(.3)
        calls.append(split)
        labels = np.arange(1, 11, dtype=np.uint8)[:, None]
        savemat(Path(root)/f'{split}_32x32.mat', dict(X=pixels(32, 32, 3, 10), y=labels))
    import torchvision
    monkeypatch.setattr(torchvision, 'datasets', SimpleNamespace(SVHN=svhn))
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(data.load, 'svhn', root=tmp_path)
        half.wait()
        second = pool.submit(data.load, 'svhn', root=tmp_path)
        assert len(first.result().x_test) == len(second.result().x_test) == 10
    assert calls == ['train', 'test']


# ---- Data

@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 4), min_size=2, max_size=60), st.floats(.01, .9), st.integers(0, 5))
def test_split_by_class(labels, fraction, seed):
    y = torch.tensor(labels*2)   # every class twice at least
    train, test = data.split_by_class(y, fraction, seed)
    assert sorted(torch.cat([train, test]).tolist()) == list(range(len(y)))
    for c in y.unique():
        n = (y == c).sum().item()
        taken = (y[test] == c).sum().item()
        assert 1 <= taken < n and abs(taken - fraction*n) <= max(.5, 1 - fraction*n, 1 - (1 - fraction)*n)

def test_data_travels_between_processes():
    digits = data.load().subset(20, 10)
    again = pickle.loads(pickle.dumps(digits))
    assert repr(again) == repr(digits) and torch.equal(again.x_train, digits.x_train)
    with pytest.raises(AttributeError): again.name = 'other'

def test_grey_and_colour_pictures():
    import matplotlib
    matplotlib.use('agg')
    fig = data.show_images(torch.from_numpy(pixels(7, 3, 8, 8)), [str(i) for i in range(7)], columns=4)
    assert len(fig.axes) == 8 and fig.axes[6].get_title() == '6'
    shown = data.show_images(torch.full((1, 1, 2, 2), 1.5)).axes[0].images[0].get_array()
    assert shown.min() == shown.max() == 1


# ---- real files

@pytest.mark.parametrize('name', [n for n, known in data.KNOWN.items() if known.shape])
def test_small_sets_load_in_2_cpu_seconds(name):
    try:
        with Stopwatch() as watch: found = data.load(name, root=REAL, download=False)
    except FileNotFoundError: pytest.skip(f'{name} is not on this machine')
    assert watch.cpu < 2
    assert found.x_train.dtype == torch.uint8
    assert found.x_train.is_contiguous()

def test_compressed_fashionmnist_is_the_same(tmp_path):
    raw = REAL/'FashionMNIST'/'raw'
    images = raw/'train-images-idx3-ubyte'
    if not Path(f'{images}.gz').exists() or not images.exists():
        pytest.skip('FashionMNIST is not here in both forms')
    (tmp_path/'FashionMNIST'/'raw').mkdir(parents=True)
    for path in raw.glob('*.gz'): (tmp_path/'FashionMNIST'/'raw'/path.name).symlink_to(path)
    with Stopwatch() as watch: packed = data.load('fashionmnist', root=tmp_path)
    plain = data.load('fashionmnist', root=REAL)
    assert torch.equal(packed.x_train, plain.x_train)
    assert torch.equal(packed.y_test, plain.y_test)
    assert watch.cpu < 2


# ---- spectra

def test_spectra_options(tmp_path):
    options = dict(band=[.2, .7], size=12, n_classes=3, n_train=30, n_test=20, exponent=2, strength=1, seed=5)
    made = data.load('spectra', root=tmp_path, **options)
    assert made.shape == (1, 12, 12)
    assert made.n_classes == 3
    assert (len(made.x_train), len(made.x_test)) == (30, 20)
    again = data.load('spectra', **options)
    assert torch.equal(made.x_train, again.x_train) and torch.equal(made.y_test, again.y_test)
    for wrong in (dict(strength=0), dict(exponent=-1), dict(size=1), dict(n_classes=1), dict(n_test=0),
                  dict(band=(.7, .2)), dict(band='hi'), dict(width=3)):
        assert next(iter(wrong)) in complaint('spectra', tmp_path, **wrong)

@settings(max_examples=40, deadline=None, derandomize=True)
@given(st.integers(2, 40), st.lists(st.floats(0, 1), min_size=1, max_size=4))
def test_bands_tile_the_plane(size, cuts):
    edges = sorted({0, *cuts, 1})
    total = np.zeros((size, size), int)
    for band in zip(edges, edges[1:]):
        try: mask = data.quantile_band(size, band)
        except ValueError: continue   # too narrow to hold a coefficient
        assert (mask == mask.T).all()
        total += mask
    assert (total == 1).all()

def test_spectra_differ_only_inside_the_bands():
    "With one seed the images for two bands share all other coefficients, up to rounding to bytes and clipping."
    from scipy.fft import dctn
    def spectra(band):
        images = data.load('spectra', band=band, n_train=200).x_train[:, 0].double()/255
        return dctn(images.numpy(), axes=(1, 2), norm='ortho')
    low, high = spectra('low'), spectra('high')
    inside = data.quantile_band(28, 'low') | data.quantile_band(28, 'high')
    difference = np.sqrt(((low - high)**2).mean(0))
    assert difference[~inside].max() < .01 and difference[inside].min() > .015


# ---- what is doubtful is said, or refused

def test_transparent_images_of_every_kind(tmp_path):
    "White ink on nothing: right on black, refused without a ground, and counted."
    ink = np.zeros((8, 8), np.uint8)
    ink[2:5, 3] = 255
    alpha = Image.fromarray(ink)
    grey = Image.new('L', (8, 8), 255)
    colour = Image.new('RGB', (8, 8), 'white')
    both = Image.merge('LA', (grey, alpha))
    palette = Image.fromarray(ink//255)
    palette.putpalette([255]*6)
    kinds = dict(LA=(both, {}), RGBA=(both.convert('RGBA'), {}), palette=(palette, dict(transparency=0)),
                 level=(alpha, dict(transparency=0)), colour=(alpha.convert('RGB'), dict(transparency=(0, 0, 0))))
    for name, (image, options) in kinds.items():
        (tmp_path/name).mkdir()
        for i in range(2): image.save(tmp_path/name/f'{i}.png', **options)
    message = complaint(tmp_path, None)
    assert '10 images with transparent pixels' in message
    assert 'LA/0.png' in message
    assert "ground='white'" in message
    found = data.load(tmp_path, ground='black')
    assert found.notes == ('10 images composited on black',)
    assert not found.lossless
    assert 'untouched' not in repr(found)
    x = torch.cat([found.x_train, found.x_test])
    assert (x == torch.from_numpy(ink)).all()
    assert (data.read_folder(tmp_path, ground=255).x[:6] == 255).all()
    with pytest.raises(ValueError, match='ground: got'): data.load(tmp_path, ground='blue')
    colour.convert('RGBA').save(tmp_path/'LA'/'0.png')   # opaque everywhere: nothing is doubtful
    (tmp_path/'opaque'/'a').mkdir(parents=True)
    colour.convert('RGBA').save(tmp_path/'opaque'/'a'/'0.png')
    opaque = data.read_folder(tmp_path/'opaque')
    assert (opaque.x == 255).all()
    assert opaque.notes == ()
    assert opaque.lossy == 0

def test_colours_of_more_than_8_bits_are_refused(tmp_path):
    "Also where Pillow would silently keep 8 of 16."
    number = lambda n: struct.pack('>I', n)
    def chunk(kind, body): return number(len(body)) + kind + body + number(zlib.crc32(kind + body))
    def png(depth, colour, row, *more):
        head = chunk(b'IHDR', struct.pack('>IIBBBBB', 1, 1, depth, colour, 0, 0, 0))
        body = chunk(b'IDAT', zlib.compress(b'\0' + row)) + chunk(b'IEND', b'')
        return b'\x89PNG\r\n\x1a\n' + head + b''.join(more) + body
    deep = {'rgb.png': png(16, 2, bytes(6)), 'rgba.png': png(16, 6, bytes(8)), 'la.png': png(16, 4, bytes(4)),
            'l.png': png(16, 0, bytes(2)),
            'rgb.ppm': b'P6 1 1 1023\n' + bytes(6), 'l.pgm': b'P5 1 1 65535\n' + bytes(2),
            'text.ppm': b'P3 1 1 1000\n1000 3 3\n'}
    for name, content in deep.items():
        (tmp_path/name/'a').mkdir(parents=True)
        (tmp_path/name/'a'/name).write_bytes(content)
        with pytest.raises(ValueError, match='more than 8 bits') as error:
            data.read_folder(tmp_path/name)
        assert name in str(error.value)
    (tmp_path/'float'/'a').mkdir(parents=True)
    Image.fromarray(np.ones((2, 2), np.float32)).save(tmp_path/'float'/'a'/'x.tif')
    with pytest.raises(ValueError, match='more than 8 bits'): data.read_folder(tmp_path/'float')
    (tmp_path/'few'/'a').mkdir(parents=True)
    (tmp_path/'few'/'a'/'x.png').write_bytes(png(4, 0, b'\xf0'))
    (tmp_path/'few'/'a'/'y.ppm').write_bytes(b'P5 1 1 15\n\x0f')
    assert data.read_folder(tmp_path/'few').x.tolist() == [[[[255]]]]*2   # fewer than 8 bits are read right
    (tmp_path/'few'/'a'/'z.png').write_bytes(png(4, 0, b'\xf0', chunk(b'tRNS', b'\0\x0f')))
    with pytest.raises(ValueError, match='z.png.*fewer than 8 bits'):
        data.read_folder(tmp_path/'few', ground='white')

@pytest.mark.parametrize('kind', ['JPEG', 'PNG', 'TIFF', 'WEBP'])
def test_photographs_are_turned_by_their_tag(tmp_path, kind):
    upright = np.zeros((16, 16), np.uint8)
    upright[:4] = 255   # light comes from above
    for tag, steps in (1, 0), (3, 2), (6, 1), (8, 3):
        exif = Image.Exif()
        exif[274] = tag
        (tmp_path/str(tag)).mkdir()
        lying = Image.fromarray(np.rot90(upright, steps).copy()).convert('RGB')
        lying.save(tmp_path/str(tag)/f'x.{kind.lower()}', kind, exif=exif, quality=95)
    found = data.read_folder(tmp_path)
    assert found.notes == ('3 images turned by their EXIF tag',)
    assert (found.x[:, :, 1:3] > 200).all() and (found.x[:, :, 5:] < 60).all()

def test_other_suffixes_other_files_and_pictures_of_several(tmp_path):
    (tmp_path/'a'/'b'/'c').mkdir(parents=True)
    frames = [Image.new('L', (4, 4), level) for level in (10, 90)]
    frames[0].save(tmp_path/'a'/'one.JFIF', 'JPEG')
    frames[0].save(tmp_path/'a'/'b'/'c'/'deep.PNG')
    for suffix in 'gif', 'tif', 'apng':
        several = tmp_path/'a'/f'several.{suffix}'
        frames[0].save(several, dict(apng='PNG').get(suffix), save_all=True, append_images=frames[1:])
    for name in 'notes.txt list.csv a.heic b.raw .hidden Thumbs.db .DS_Store'.split():
        (tmp_path/'a'/name).write_text('x')
    found = data.read_folder(tmp_path)
    assert len(found.x) == 5 and (found.x.float() - 10).abs().max() <= 2
    assert found.notes == ('4 files skipped: a/a.heic, a/b.raw, a/list.csv, ...',
                           '1 image taken from subfolders of class folders',
                           'first picture taken of 3 files with several')
    assert found.lossy == 1

def test_content_decides_what_is_lossy(tmp_path):
    (tmp_path/'a').mkdir()
    image = Image.fromarray(pixels(8, 8, 3))
    image.save(tmp_path/'a'/'jpeg.png', 'JPEG')
    image.save(tmp_path/'a'/'png.jpg', 'PNG')
    image.save(tmp_path/'a'/'packed.tif', compression='jpeg')
    assert data.read_folder(tmp_path).lossy == 2

def test_cmyk_is_refused(tmp_path):
    (tmp_path/'a').mkdir()
    Image.new('CMYK', (4, 4)).save(tmp_path/'a'/'print.jpg')
    with pytest.raises(ValueError, match='print.jpg.*CMYK'): data.read_folder(tmp_path)

def test_all_broken_files_are_named_at_once(tmp_path):
    write_tree(tmp_path, ['a'], pixels(30, 9, 9))
    paths = [tmp_path/'a'/f'{i}.png' for i in range(30)]
    for path in paths[:12]: path.write_bytes(path.read_bytes()[:-40])   # found when decoded
    for path in paths[12:25]: path.write_text('no image')               # found at once
    with pytest.raises(ValueError) as error: data.read_folder(tmp_path)
    message = str(error.value)
    assert '25 files cannot be read' in message and 'and 5 more' in message
    assert sum(path.name in message for path in paths) >= 20

def test_what_exists_as_typed_wins(tmp_path):
    write_tree(tmp_path/'photos', ['a', 'b'], pixels(2, 4, 4))
    np.savez(tmp_path/'photos.npz', images=pixels(10, 4, 4), labels=np.arange(10) % 2)
    sizes = lambda name: len(data.take(name, tmp_path).x)
    assert [sizes(name) for name in ('photos', 'photos.npz')] == [4, 10]
    assert [sizes(tmp_path/name) for name in ('photos', 'photos.npz')] == [4, 10]
    (tmp_path/'empty').mkdir()
    (tmp_path/'photos.npz').rename(tmp_path/'empty.npz')
    assert 'empty.npz for the file' in complaint('empty', tmp_path)
    (tmp_path/'empty').rmdir()
    assert sizes('empty') == 10
    (tmp_path/'empty').write_text('a file of another kind')
    assert f'{tmp_path/"empty"}: not a complete .npz' in complaint('empty', tmp_path)

def test_two_sets_in_one_folder_are_ambiguous(tmp_path):
    write_npz(tmp_path/'mine', pixels(10, 4, 4), np.arange(10) % 2)
    for split in 'train', 'test': write_tree(tmp_path/'mine'/split, ['0', '1'], pixels(2, 4, 4))
    assert 'move one of the two' in complaint('mine', tmp_path)
    (tmp_path/'mine'/'train').rename(tmp_path/'train')
    assert len(data.load('mine', tmp_path).x_test) == 10

def test_train_as_a_class_and_as_a_part(tmp_path):
    write_tree(tmp_path/'vehicles', ['bus', 'train', 'tram'], pixels(3, 4, 4))
    assert data.load('vehicles', tmp_path).classes == ('bus', 'train', 'tram')
    for split in 'train', 'test': write_tree(tmp_path/'split'/split, ['a', 'b'], pixels(2, 4, 4))
    (tmp_path/'split'/'annotations').mkdir()
    (tmp_path/'split'/'annotations'/'x.xml').write_text('x')
    assert data.load('split', tmp_path).split == 'given'
    write_tree(tmp_path/'split', ['bus'], pixels(2, 4, 4))
    assert "'bus'" in complaint('split', tmp_path)
    for split in 'Training', 'Validation':
        write_tree(tmp_path/'odd'/split, ['a', 'b'], pixels(2, 4, 4))
    assert 'call them train and test' in complaint('odd', tmp_path)

def test_class_names_in_two_forms(tmp_path):
    write_tree(tmp_path/'cafes'/'train', ['caf\u00e9', 'tea'], pixels(2, 4, 4))
    write_tree(tmp_path/'cafes'/'test', ['cafe\u0301', 'tea'], pixels(2, 4, 4))
    assert data.load('cafes', tmp_path).classes == ('caf\u00e9', 'tea')
    write_tree(tmp_path/'cafes'/'train', ['cafe\u0301'], pixels(2, 4, 4))
    message = complaint('cafes', tmp_path)
    assert "'caf\\xe9'" in message and "'cafe\\u0301'" in message

def test_names_that_cannot_be_shown(tmp_path):
    for i, name in enumerate([b'\xff\xfe', b'bell\x07', b'two\nlines']):
        write_tree(tmp_path/str(i), ['tea'], pixels(2, 4, 4))
        os.rename(tmp_path/str(i)/'tea', os.fsencode(tmp_path/str(i)) + b'/' + name)
        complaint(str(i), tmp_path).encode()   # what is printed can be
    write_tree(tmp_path/'odd', ['$x_', '_y', '$\\frac', '東京', 'a%b{'], pixels(2, 4, 4))
    found = data.load('odd', tmp_path)
    fig = data.show_images(found)
    fig.canvas.draw()
    assert [ax.get_title() for ax in fig.axes[:5]] == list(found.classes)
    os.rename(tmp_path/'odd'/'_y'/'0.png', os.fsencode(tmp_path/'odd'/'_y') + b'/\xff.txt')
    repr(data.read_folder(tmp_path/'odd')._replace(x=None, y=None)).encode()
    assert '\\udcff.txt' in data.read_folder(tmp_path/'odd').notes[0]

def test_images_of_other_integers_are_refused():
    digits = data.load().subset(20, 10)
    for kind in torch.int16, torch.int32, torch.int64, torch.bool, torch.complex64, torch.int8:
        with pytest.raises(ValueError, match=f'{kind}'): data.to_float(digits.x_test.to(kind))
    assert torch.equal(data.to_float(digits.x_test), digits.x_test.float()/255)

def test_folder_and_npz_give_the_same_pixels(tmp_path):
    "At every size, square or not, smaller or larger."
    for i, (h, w) in enumerate([(30, 47), (47, 30), (16, 16), (9, 12), (224, 300)]):
        for c in 1, 3:
            images = pixels(2, h, w, c) if c == 3 else pixels(2, h, w)
            for name, image in zip('ab', images):
                path = tmp_path/f'{i}{c}'/name
                path.mkdir(parents=True)
                Image.fromarray(image).save(path/'x.png')
            np.savez(tmp_path/f'{i}{c}.npz', images=images, labels=[0, 1])
            whole = data.read_npz(tmp_path/f'{i}{c}.npz').x
            for size in 8, 16, 32, 224:
                found = data.read_folder(tmp_path/f'{i}{c}', size=size)
                assert torch.equal(found.x, data.resize(whole, size))

def test_a_folder_below_the_home_folder(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path))
    write_npz(tmp_path/'mine', pixels(20, 8, 8), np.arange(20) % 2)
    assert data.load('~/mine').n_classes == data.take('~/mine').y.max() + 1 == 2


# --- folders that people have

def class_folders(folder, *names):
    for name in names:
        (folder/name).mkdir(parents=True)
        for i in range(2): Image.new('L', (8, 8), 100*i).save(folder/name/f'{i}.png')

def test_one_folder_under_two_names_is_no_two_classes(tmp_path):
    class_folders(tmp_path/'pets', 'cat', 'dog')
    (tmp_path/'pets/newt').symlink_to('dog')
    said = "pets: the classes 'dog' and 'newt' are one folder, by links; each class needs"
    assert said in complaint('pets', tmp_path)
    class_folders(tmp_path/'elsewhere', 'eft')
    (tmp_path/'pets/newt').unlink()
    (tmp_path/'pets/newt').symlink_to(tmp_path/'elsewhere/eft')
    assert data.take('pets', tmp_path).classes == ('cat', 'dog', 'newt')

def test_a_part_of_a_split_beside_classes_is_no_class(tmp_path):
    class_folders(tmp_path/'pets', 'cat', 'dog', 'val/cat', 'val/dog')
    assert "pets: 'val' hold folders of images and no image, as the parts of a split do" in complaint('pets', tmp_path)
    (tmp_path/'pets/val').rename(tmp_path/'pets/mixed')  # folders in a class folder are its own
    assert data.take('pets', tmp_path).y.tolist() == [0, 0, 1, 1, 2, 2, 2, 2]
    class_folders(tmp_path/'words', 'test', 'cat')  # a class by its images
    assert data.take('words', tmp_path).classes == ('cat', 'test')

def test_images_without_class_folders_are_said_to_be_that(tmp_path):
    class_folders(tmp_path, 'pets')
    assert 'pets: images, but no class folders; wanted one folder of images per class' in complaint('pets', tmp_path)
    assert data.take('.', tmp_path).classes == ('pets',)

def test_a_label_map_of_windows(tmp_path):
    from robustnb.interop import read_images
    class_folders(tmp_path/'pets', 'cat', 'dog')
    (tmp_path/'map.json').write_bytes(b'\xef\xbb\xbf{"cat": 1,\r\n "dog": 0}\r\n\r\n')
    assert read_images(tmp_path/'pets', label_map=tmp_path/'map.json').y.tolist() == [1, 1, 0, 0]
