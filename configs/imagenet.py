"""ImageNet with ResNet-50: the paper's recipe with one crop.

    python -m tools.pretrain --config=configs/imagenet.py --workdir=DIR \
        --strategy=mirrored --config.data.data_dir=DATA_DIR

The paper's linear accuracy after 200 epochs, with predictor and InfoNCE
warm-up: 72.0 %. Not measured by this project, which has neither ImageNet nor
the days of many GPUs that it takes.

DATA_DIR is where TensorFlow Datasets has prepared imagenet2012; images are
streamed from it. Views of ImageNet keep many cores busy (docs/augmentation.md).
"""

from ml_collections import config_dict

from configs import common


def get_config(arg=None):
    """The recipe; `:quick` shrinks it to minutes."""
    config = common.get_config()

    config.data.source = "tfds:imagenet2012"
    config.data.stream = True
    config.data.image_size = 224
    config.data.mean = (0.485, 0.456, 0.406)
    config.data.std = (0.229, 0.224, 0.225)

    student = config.views.student  # strong, with BYOL's strengths
    student.crops = 1  # 2 go with 2 of the teacher
    student.min_area = 0.14
    student.max_area = 1.0
    student.flip = 0.5
    student.jitter = 0.8  # the probability of the next four
    student.brightness = 0.4
    student.contrast = 0.4
    student.saturation = 0.2
    student.hue = 0.1
    student.grayscale = 0.2
    student.blur = 0.5
    student.blur_sigma = (0.1, 2.0)
    student.blur_kernel = 23
    student.solarize = 0.1
    student.randaugment = 0
    teacher = config.views.teacher  # weak
    teacher.crops = 1
    teacher.min_area = 0.2
    teacher.max_area = 1.0
    teacher.flip = 0.5

    config.backbone = dict(name="resnet50", stem="imagenet", width=64)
    config.backbone.zero_init_last_gamma = False
    config.projector = dict(hidden_dim=4096, output_dim=256, batch_norm=True)
    config.predictor = dict(enabled=True, hidden_dim=4096, batch_norm=True)

    config.method = dict(
        alpha=1.0,  # of the relational loss, after the warm-up; 0: MoCo
        queue_size=65536,
        student_temperature=0.1,
        teacher_temperature=0.03,
        infonce_temperature=0.1,  # the paper gives none
        # The paper gives no length: the learning rate's warm-up.
        infonce_warmup_epochs=10.0,
        infonce_warmup_steps=0,  # in place of epochs
        teacher_momentum=0.996,  # to 1, along half a cosine
        teacher_momentum_cosine=True,
        allow_flat_target=False,
        # Groups of the batch with batch statistics of their own: None with
        # the predictor, 8 without.
        bn_splits=config_dict.placeholder(int),
    )

    config.optimizer = dict(
        name="lars",
        base_learning_rate=0.6,  # 2.4 for a batch of 1024
        momentum=0.9,
        weight_decay=1e-6,
        # None for the optimiser's custom: lars leaves them out.
        exclude_bias_and_norm=config_dict.placeholder(bool),
    )
    config.train.batch_size = 1024
    config.train.epochs = 200.0
    config.train.warmup_epochs = 10.0
    config.monitor.eval_every_epochs = 0  # k-NN needs the images in memory

    return common.finish(config, arg)
