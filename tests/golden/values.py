"""Numbers that others published of real models, each with its source: repository and file. Data only.

Texts are short quotations of the same files. What openbei does not serve (bge-m3's sparse and colbert outputs) is left
out, and so is what cannot be repeated: TEI's snapshots of a RoBERTa classifier, made with positions from 0, and of
SFR-Embedding-2_R, a mean over tokens of which the end may or may not have been one. TEI's are of commit
0d124dc9773be6ac5a9a57d8439aba9bbbf33273.
"""

from dataclasses import dataclass

from openbei.engine.request import Pair

Matrix = tuple[tuple[float, ...], ...]
Message = dict[str, str]

# How far a component of a vector of length 1 may be off; of 1024 components one is 0.03 on average.
SAME = 5e-5  # float32 and the same formulas
TANH = 7e-4  # float32, but the publisher computes every gelu by its tanh form (MiniLM: 1.5e-4)
HALF = 1e-3  # float16 weights or arithmetic, or four digits printed

TEI = "huggingface/text-embeddings-inference backends/candle/tests/snapshots/{}.snap"
FASTEMBED = "qdrant/fastembed tests/test_text_onnx_embeddings.py"
OLLAMA = "ollama/ollama integration/testdata/embed.json"
OWN = "transformers in float32, run for this table"
SENTENCES = "huggingface/sentence-transformers tests/sentence_transformer/test_pretrained.py"
CROSS = "huggingface/sentence-transformers tests/cross_encoder/test_pretrained.py"
FLAG = "FlagOpen/FlagEmbedding {}"
CARD = "the model's own page"
SGLANG = "sgl-project/sglang docs, native API"


@dataclass(frozen=True)
class Vector:
    """The first values of a text's vector. norm: of all its values, 1 if published so, None if not published.

    Both are compared at length 1, to tolerance.
    """

    model: str
    source: str
    text: str
    values: tuple[float, ...]
    norm: float | None
    tolerance: float


@dataclass(frozen=True)
class Similarities:
    """Cosines (queries, documents), to tolerance. prompts: before each the model's own prompt for its kind, if any."""

    model: str
    source: str
    queries: tuple[str, ...]
    documents: tuple[str, ...]
    values: Matrix
    tolerance: float
    prompts: bool = False


@dataclass(frozen=True)
class Scores:
    """What a model with one label gives pairs or chats, to tolerance; raw: before the activation."""

    model: str
    source: str
    inputs: tuple[Pair, ...] | tuple[tuple[Message, ...], ...]
    values: tuple[float, ...]
    tolerance: float
    raw: bool = False


@dataclass(frozen=True)
class Ids:
    """The token ids of a text."""

    model: str
    source: str
    text: str
    ids: tuple[int, ...]


Row = Vector | Similarities | Scores | Ids

MINILM = "sentence-transformers/all-MiniLM-L6-v2"
_DEEP, _HELLO, _SKY = "What is Deep Learning?", "hello world", "why is the sky blue?"


def _tei(model: str, snapshot: str, values: tuple[float, ...], norm: float, tolerance: float = TANH) -> Vector:
    return Vector(model, TEI.format(snapshot), _DEEP, values, norm, tolerance)


def _fastembed(model: str, *values: float, norm: float | None = 1.0) -> Vector:
    return Vector(model, FASTEMBED, _HELLO, values, norm, HALF)


def _ollama(model: str, *values: float, norm: float) -> Vector:
    return Vector(model, OLLAMA, _SKY, values, norm, HALF)


VECTORS = (
    Vector(MINILM, OWN, _DEEP, (-0.590237, -0.252319, 0.149686, 0.054787, -0.118040, -0.167237), 7.58158, 2e-6),
    _tei(
        MINILM,
        "test_bert__bert_single",
        (-0.59059864, -0.25252345, 0.14972475, 0.05487579, -0.11783009, -0.16678402),
        7.58091,
    ),
    _tei(
        "jinaai/jina-embeddings-v2-base-code",
        "test_jina_code__jina_code_single",
        (-0.15109017, -0.021903912, -0.08391459, -0.12880382, 0.35795733, 0.2964905),
        13.01229,
    ),
    _tei(
        "nomic-ai/nomic-embed-text-v1.5",
        "test_nomic__nomic_single",
        (0.27285635, 0.94036365, -2.5491776, -2.0234516, 1.4199733, 0.8992536),
        23.26841,
        SAME,
    ),
    _tei(
        "Alibaba-NLP/gte-Qwen2-1.5B-instruct",
        "test_flash_qwen2__qwen2_single",
        (-4.9960938, 6.8007813, -1.6386719, -3.2109375, 7.0507813, -0.5097656),
        176.11971,
        HALF,
    ),
    _tei(
        "Alibaba-NLP/gte-multilingual-base",
        "test_gte__alibaba_new_gte_single",
        (0.016608043, -0.5738141, -1.2647005, 0.1143095, 1.1395286, -1.6311411),
        20.82148,
    ),
    _tei(
        "jinaai/jina-embeddings-v2-small-en",
        "test_jina__jina_single",
        (-0.7366036, -0.34022003, -0.0716392, 0.108484305, 0.14210966, -0.4099645),
        10.26311,
    ),
    _tei(
        "Alibaba-NLP/gte-base-en-v1.5",
        "test_gte__alibaba_gte_single",
        (0.4415129, 0.61066884, 0.06948684, -0.59306145, 0.8815817, -0.10978132),
        21.43614,
    ),
    _tei(
        "Snowflake/snowflake-arctic-embed-m-v2.0",
        "test_gte__snowflake_gte_single",
        (1.7535613, 0.79910284, -1.1066751, -0.33090124, 1.0041298, -0.790565),
        21.54955,
    ),
    _tei(
        "NovaSearch/stella_en_400M_v5",  # there under its older name, dunzhang/stella_en_400M_v5
        "test_dense__stella_en_400m_v5_default_dense_single",
        (-0.0014279187, 0.85649866, -0.56371355, -0.077163205, -1.3959792, 0.16868791),
        22.51555,
    ),
    _tei(
        "answerdotai/ModernBERT-base",
        "test_modernbert__modernbert_single",
        (0.34931707, -0.51038086, -0.33732572, -0.14398514, 0.42293617, 0.08094036),
        25.05999,
    ),
    _tei(
        "sentence-transformers/all-mpnet-base-v2",
        "test_mpnet__mpnet_single",
        (-0.07253095, -0.0068269786, -0.13467498, -0.01596497, -0.033424024, 0.100114025),
        3.05216,
    ),
    _tei(
        "Qwen/Qwen3-Embedding-0.6B",
        "test_qwen3__qwen3_cpu_single",
        (-1.5195851, -3.0843177, -1.0581057, -6.4716716, -1.6939588, 6.247706),
        96.65715,
        SAME,
    ),
    _tei(
        "google/embeddinggemma-300m",
        "test_gemma3__gemma3_cpu_single",
        (-69.487144, -7.1062355, 9.740196, 18.997515, 5.889509, 42.72213),
        718.17659,
        SAME,
    ),
    _fastembed(MINILM, -0.034478, 0.03102, 0.00673, 0.02611, -0.039362),
    _fastembed("BAAI/bge-large-en-v1.5", 0.03434538, 0.03316108, 0.02191251, -0.03713358, -0.01577825),
    _fastembed("BAAI/bge-base-en-v1.5", 0.01129394, 0.05493144, 0.02615099, 0.00328772, 0.02996045),
    _fastembed("BAAI/bge-small-en-v1.5", 0.01522374, -0.02271799, 0.00860278, -0.07424029, 0.00386434),
    _fastembed("mixedbread-ai/mxbai-embed-large-v1", 0.02295546, 0.03196154, 0.016512, -0.04031524, -0.0219634),
    _fastembed("jinaai/jina-embeddings-v2-base-en", -0.0332, -0.0509, 0.0287, -0.0043, -0.0077),
    _fastembed("jinaai/jina-embeddings-v2-small-en", -0.0455, -0.0428, -0.0122, 0.0613, 0.0015),
    _fastembed("jinaai/jina-embeddings-v2-base-code", 0.0145, -0.0164, 0.0136, -0.0170, 0.0734),
    _fastembed(
        "nomic-ai/nomic-embed-text-v1.5", -0.15407836, -0.03053198, -3.9138033, 0.1910364, 0.13224715, norm=None
    ),
    _fastembed("thenlper/gte-large", -0.00986551, -0.00018734, 0.00605892, -0.03289612, -0.0387564),
    _fastembed("Qwen/Qwen3-Embedding-0.6B", -0.02225659, 0.01872586, -0.01449341, -0.08536665, 0.01223033),
    _ollama(MINILM, 0.010071031, -0.0017594865, 0.050072223, 0.046929732, 0.05491682, norm=1.0),
    _ollama("BAAI/bge-large-en-v1.5", 0.024039, -0.038347, 0.462841, -0.346994, -0.493149, norm=17.36946),
    _ollama("mixedbread-ai/mxbai-embed-large-v1", -0.18443, -0.044229, 0.257643, -0.340901, -0.494335, norm=17.63512),
    _ollama("BAAI/bge-m3", -1.163652, 0.618828, -0.90519, -1.253793, -0.470312, norm=25.39179),
    _ollama(
        "Snowflake/snowflake-arctic-embed-l-v2.0", -0.337318, 0.485787, -0.037816, -0.943875, -0.819299, norm=12.55314
    ),
    _ollama("nomic-ai/nomic-embed-text-v1.5", 0.21989, 1.00665, -3.181164, 0.029981, 0.726579, norm=22.61874),
)

_PLANET = "Which planet is known as the Red Planet?"
_PLANETS = (
    "Venus is often called Earth's twin because of its similar size and proximity.",
    "Mars, known for its reddish appearance, is often referred to as the Red Planet.",
    "Jupiter, the largest planet in our solar system, has a prominent red spot.",
    "Saturn, famous for its rings, is sometimes mistaken for the Red Planet.",
)
# Float32, five digits: commit 2e3e6352219281dc45aebbff61c3fd9939b68e26.
PLANET_COSINES = {
    MINILM: (0.46469, 0.81146, 0.72792, 0.75019),
    "BAAI/bge-large-en-v1.5": (0.53004, 0.81202, 0.68899, 0.7095),
    "WhereIsAI/UAE-Large-V1": (0.51777, 0.83044, 0.66854, 0.70359),
    "mixedbread-ai/mxbai-embed-large-v1": (0.57955, 0.81607, 0.72447, 0.73377),
    "BAAI/bge-m3": (0.40965, 0.71124, 0.64807, 0.65035),
    "Snowflake/snowflake-arctic-embed-l-v2.0": (0.33782, 0.70994, 0.55318, 0.5992),
    "intfloat/multilingual-e5-large-instruct": (0.79779, 0.89875, 0.85599, 0.85365),
    "nomic-ai/nomic-embed-text-v1.5": (0.65113, 0.88814, 0.79888, 0.81393),
    "NovaSearch/stella_en_400M_v5": (0.55998, 0.83601, 0.69783, 0.70312),
    "Alibaba-NLP/gte-base-en-v1.5": (0.52348, 0.78222, 0.52774, 0.63725),
    "Alibaba-NLP/gte-large-en-v1.5": (0.6413, 0.87381, 0.67332, 0.77191),
    "Alibaba-NLP/gte-multilingual-base": (0.63711, 0.92462, 0.78728, 0.75058),
    "BAAI/bge-base-en-v1.5": (0.56823, 0.85511, 0.73461, 0.69612),
    "BAAI/bge-large-zh-v1.5": (0.46354, 0.72705, 0.68646, 0.67346),
    "BAAI/bge-small-en-v1.5": (0.60098, 0.8291, 0.77927, 0.70905),
    "Qwen/Qwen3-Embedding-0.6B": (0.48113, 0.69014, 0.58377, 0.66434),
    "Snowflake/snowflake-arctic-embed-m": (0.29498, 0.46004, 0.37611, 0.37525),
    "google/embeddinggemma-300m": (0.30082, 0.6361, 0.4927, 0.48888),
    "ibm-granite/granite-embedding-english-r2": (0.79473, 0.92265, 0.86995, 0.90711),
    "ibm-granite/granite-embedding-small-english-r2": (0.8018, 0.92562, 0.8903, 0.88743),
    "intfloat/e5-base-v2": (0.79724, 0.90021, 0.8485, 0.86522),
    "intfloat/e5-large-v2": (0.77354, 0.85856, 0.83334, 0.84103),
    "intfloat/e5-small-v2": (0.81278, 0.91429, 0.86806, 0.87815),
    "intfloat/multilingual-e5-base": (0.79078, 0.87654, 0.85599, 0.86601),
    "intfloat/multilingual-e5-large": (0.76823, 0.87257, 0.8288, 0.83204),
    "intfloat/multilingual-e5-small": (0.81146, 0.90638, 0.87144, 0.85721),
    "jinaai/jina-embeddings-v2-small-en": (0.76039, 0.91308, 0.88758, 0.85223),
    "lightonai/modernbert-embed-large": (0.72093, 0.88348, 0.79301, 0.84273),
    "nomic-ai/modernbert-embed-base": (0.66453, 0.8449, 0.75102, 0.79015),
    "nomic-ai/nomic-embed-text-v1": (0.5299, 0.83191, 0.69565, 0.74845),
    "sentence-transformers/LaBSE": (0.33915, 0.63683, 0.42413, 0.51478),
    "sentence-transformers/all-MiniLM-L12-v2": (0.44697, 0.73776, 0.67435, 0.63074),
    "sentence-transformers/all-mpnet-base-v2": (0.46544, 0.7783, 0.69194, 0.70103),
    "sentence-transformers/all-roberta-large-v1": (0.44306, 0.79517, 0.70153, 0.6759),
    "sentence-transformers/distilbert-base-nli-mean-tokens": (0.28534, 0.77129, 0.57375, 0.66694),
    "sentence-transformers/distiluse-base-multilingual-cased-v2": (0.41149, 0.65171, 0.59912, 0.59548),
    "sentence-transformers/multi-qa-MiniLM-L6-cos-v1": (0.4574, 0.76815, 0.72746, 0.70799),
    "sentence-transformers/paraphrase-multilingual-MiniLM-L12-v2": (0.45344, 0.72604, 0.63646, 0.66457),
    "sentence-transformers/paraphrase-multilingual-mpnet-base-v2": (0.39203, 0.73921, 0.70264, 0.61803),
    "thenlper/gte-base": (0.83165, 0.93071, 0.88769, 0.89534),
    "thenlper/gte-large": (0.81024, 0.93618, 0.88395, 0.89457),
    "thenlper/gte-small": (0.83949, 0.93082, 0.90772, 0.90319),
}

_TASK = "Given a web search query, retrieve relevant passages that answer the query."
_QUERIES = ("how much protein should a female eat", "summit define")
_PASSAGES = (
    "As a general guideline, the CDC's average requirement of protein for women ages 19 to 70 is 46 grams per day. "
    "But, as you can see from this chart, you'll need to increase that if you're expecting or training for a marathon. "
    "Check out the chart below to see how much protein you should be eating each day.",
    "Definition of summit for English Language Learners. : 1  the highest point of a mountain : the top of a mountain. "
    ": 2  the highest level. : 3  a meeting or series of meetings between the leaders of two or more governments.",
)
_EXAMPLES = (
    (
        "what is a virtual interface",
        "A virtual interface is a software-defined abstraction that mimics the behavior and characteristics of a "
        "physical network interface. It allows multiple logical network connections to share the same physical network "
        "interface, enabling efficient utilization of network resources. Virtual interfaces are commonly used in "
        "virtualization technologies such as virtual machines and containers to provide network connectivity without "
        "requiring dedicated hardware. They facilitate flexible network configurations and help in isolating network "
        "traffic for security and management purposes.",
    ),
    (
        "causes of back pain in female for a week",
        "Back pain in females lasting a week can stem from various factors. Common causes include muscle strain due to "
        "lifting heavy objects or improper posture, spinal issues like herniated discs or osteoporosis, menstrual "
        "cramps causing referred pain, urinary tract infections, or pelvic inflammatory disease. Pregnancy-related "
        "changes can also contribute. Stress and lack of physical activity may exacerbate symptoms. Proper diagnosis "
        "by a healthcare professional is crucial for effective treatment and management.",
    ),
)
_ICL = "".join(f"<instruct>{_TASK}\n<query>{query}\n<response>{response}\n\n" for query, response in _EXAMPLES)

SIMILARITIES = (
    *(
        Similarities(model, SENTENCES, (_PLANET,), _PLANETS, (cosines,), 2e-5 if model == MINILM else 5e-4, True)
        for model, cosines in PLANET_COSINES.items()
    ),
    Similarities(
        "BAAI/bge-m3",
        FLAG.format("Tutorials/1_Embedding/1.2.4"),
        ("What is BGE M3?", "Defination of BM25"),
        (
            "BGE M3 is an embedding model supporting dense retrieval, lexical matching and multi-vector interaction.",
            "BM25 is a bag-of-words retrieval function that ranks a set of documents based on the query terms "
            "appearing in each document",
        ),
        ((0.6259035, 0.34749585), (0.349868, 0.6782462)),
        5e-3,  # float16
    ),
    Similarities(
        "BAAI/bge-en-icl",
        FLAG.format("Tutorials/1_Embedding/1.2.5_BGE_EN_ICL.ipynb"),
        # The notebook gives its class no instruction for the queries themselves, so the class adds none.
        tuple(f"{_ICL}{query}\n<response>" for query in _QUERIES),
        _PASSAGES,
        ((0.6064, 0.302), (0.257, 0.5366)),
        1e-2,  # float16, three digits
    ),
    Similarities(
        "BAAI/bge-multilingual-gemma2",
        FLAG.format("README of the embedders, usage with transformers"),
        tuple(f"<instruct>{_TASK}\n<query>{query}" for query in _QUERIES),
        _PASSAGES,
        ((0.5592064666748047, 0.016549524068832397), (-0.002698777914047241, 0.4995653533935547)),
        1e-3,
    ),
)

# Float32, five digits: commit d48522c40362557f7695d7daaf5cd15fdf686585.
PLANET_SCORES = {
    "BAAI/bge-reranker-large": (0.69539, 0.99861, 0.97439, 0.81449),
    "BAAI/bge-reranker-v2-m3": (0.01928, 0.9987, 0.78573, 0.98696),
    "Alibaba-NLP/gte-multilingual-reranker-base": (0.38663, 0.8524, 0.70409, 0.65237),
    "Alibaba-NLP/gte-reranker-modernbert-base": (0.80808, 0.95359, 0.88026, 0.91676),
    "BAAI/bge-reranker-base": (0.8755, 0.99813, 0.99625, 0.04914),
    "cross-encoder/mmarco-mMiniLMv2-L12-H384-v1": (-3.27741, 10.19737, 3.39716, 7.45499),
    "cross-encoder/ms-marco-MiniLM-L12-v2": (-7.18467, 9.50125, 5.7218, 6.84708),
    "cross-encoder/ms-marco-MiniLM-L2-v2": (-10.27371, 9.78853, 7.92458, 8.27393),
    "cross-encoder/ms-marco-MiniLM-L4-v2": (-7.84192, 8.94789, 5.64702, 6.6588),
    "cross-encoder/ms-marco-MiniLM-L6-v2": (-6.52474, 9.69094, 6.92376, 6.66822),
    "cross-encoder/ms-marco-TinyBERT-L2-v2": (-10.87719, 6.95237, 5.87375, 5.6997),
    "cross-encoder/stsb-distilroberta-base": (0.09564, 0.60424, 0.49345, 0.47718),
    "cross-encoder/stsb-roberta-base": (0.18105, 0.45064, 0.28236, 0.37914),
    "cross-encoder/stsb-roberta-large": (0.00906, 0.47008, 0.40034, 0.39292),
    "ibm-granite/granite-embedding-reranker-english-r2": (0.78749, 0.96672, 0.88993, 0.94344),
}

_CITIES = ("What is the capital of France?", "What is the population of China?")
_FACTS = ("Paris is the capital of France.", "The population of China is over 1.4 billion people.")
_NEURON = "What is the range of the numeric output of a sigmoid node in a neural network?"


def _chat(range_: str) -> tuple[Message, ...]:
    answer = f"The output of a sigmoid node is bounded between {range_}."
    return ({"role": "user", "content": _NEURON}, {"role": "assistant", "content": answer})


SCORES = (
    *(
        Scores(model, CROSS, tuple(Pair(_PLANET, document) for document in _PLANETS), scores, 1e-3)
        for model, scores in PLANET_SCORES.items()
    ),
    Scores(
        "BAAI/bge-reranker-large",
        FLAG.format("examples/inference/reranker"),
        tuple(Pair(query, fact) for query in _CITIES for fact in _FACTS),
        (7.984375, -6.84375, -7.15234375, 5.44921875),
        0.05,
        raw=True,
    ),
    Scores(
        "BAAI/bge-reranker-v2-m3",
        FLAG.format("examples/inference/reranker"),
        (Pair("query", "passage"),),
        (0.003483424193080668,),
        1e-4,
    ),
    Scores(
        "Alibaba-NLP/gte-multilingual-reranker-base",
        CARD,
        (
            Pair("中国的首都在哪儿", "北京"),
            Pair("what is the capital of China?", "北京"),
            Pair("how to implement quick sort in python?", "Introduction of quick sort"),
        ),
        (1.2315, 0.5923, 0.3041),
        0.01,
        raw=True,
    ),
    Scores(
        "Alibaba-NLP/gte-multilingual-reranker-base",
        TEI.format("test_gte__gte_classification_single"),
        (Pair(_DEEP, "Deep Learning is not..."),),
        (-0.74173266,),
        0.01,
        raw=True,
    ),
    Scores(
        "Alibaba-NLP/gte-reranker-modernbert-base",
        TEI.format("test_modernbert__modernbert_classification_single"),
        (Pair(_DEEP, "Deep Learning is not..."),),
        (2.13616,),
        0.01,
        raw=True,
    ),
    Scores(
        "Skywork/Skywork-Reward-Llama-3.1-8B-v0.2",
        SGLANG,
        (_chat("-1 and 1"), _chat("0 and 1")),
        (-24.125, 1.1015625),
        0.5,  # bfloat16, where a step near 24 is 0.125
        raw=True,
    ),
)

IDS = (
    Ids(MINILM, TEI.format("test_bert__bert_single"), _DEEP, (101, 2054, 2003, 2784, 4083, 1029, 102)),
    Ids("BAAI/bge-en-icl", FLAG.format("Tutorials/1_Embedding/1.2.5_BGE_EN_ICL.ipynb"), "embedding", (1, 28643, 2)),
    Ids(
        "BAAI/bge-en-icl",
        FLAG.format("Tutorials/1_Embedding/1.2.5_BGE_EN_ICL.ipynb"),
        "I love machine learning and nlp",
        (1, 315, 2016, 5599, 5168, 304, 307, 12312, 2),
    ),
)

ROWS: tuple[Row, ...] = (*VECTORS, *SIMILARITIES, *SCORES, *IDS)
MODELS: tuple[str, ...] = tuple(dict.fromkeys(row.model for row in ROWS))
