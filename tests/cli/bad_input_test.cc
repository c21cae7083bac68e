// links: weft_run
// Bad input: one line that names what was found, what was expected and what to do; the exit code;
// nothing half written.

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <map>
#include <thread>

#include "experiments/run/files.h"
#include "experiments/run/run_dir.h"
#include "tests/runs.h"

namespace weft {
namespace {

namespace fs = std::filesystem;

const std::string kTinyToml = std::string(R"(study = "tiny"
threads = 1
[task]
name = "state_tracking"
difficulties = [4, 8]
stage_steps = [3, 0]
)") + kSmallModel + R"([train]
steps = 8
batch = 4
length = 64
checkpoint_every = 4
log_every = 1000
[eval]
samples = 4
)";

constexpr const char* kTextToml = R"(study = "text"
threads = 1
[data]
path = "text"
held_out = 0.2
piece_bytes = 256
[model]
d_model = 16
layers = 1
pattern = ["attention"]
[train]
steps = 4
batch = 4
length = 32
checkpoint_every = 2
log_every = 1000
[eval]
rows = 4
)";

// Every script starts in a directory with tiny.toml, text.toml and text.
constexpr char kPrelude[] = R"bash(
export LC_ALL=C
export PATH=')bash" WEFT_BIN_DIR R"bash(':$PATH
train=weft-train; eval=weft-eval; params=weft-params; task=weft-task; bench=weft-bench
run='out/*/*'
finish() { $train ${config:-tiny.toml} --out out "$@"; }
# matched SETTINGS: plans a sweep of two widths that differ more than model.d_ff makes up for.
matched() {
  printf '%s\n' 'base = "tiny.toml"' '[variants]' 'a = { model.d_model = 4 }' \
    'b = { model.d_model = 16 }' '[match]' 'quantity = "parameters"' 'to = "a"' \
    'by = "model.d_ff"' "$1" > s.toml
  weft-sweep plan s.toml
}
# What a kill after the first checkpoint leaves.
crash() {
  finish "$@" && rm -r $(ls -d $run/checkpoints/* | tail -1) &&
    sed -i 's/"done"/"running"/' $run/status.json
}
# flip FILE OFFSET: changes one bit; an offset below 0 counts from the end.
flip() {
  local at=$2
  if [ $at -lt 0 ]; then at=$(($(stat -c %s $1) + at)); fi
  local byte=$(od -An -tu1 -j$at -N1 $1)
  printf "\\x$(printf %02x $((byte ^ 4)))" | dd of=$1 bs=1 seek=$at conv=notrunc status=none
}
# small_disk SIZE COMMAND: runs it where out/ is a file system of that size.
small_disk() { unshare -m bash -c "mkdir out && mount -t tmpfs -o size=$1 none out && $2"; }
# limited BLOCKS COMMAND: no file may grow beyond so many KiB.
limited() { (ulimit -f $1; shift; "$@" 2>&1 >/dev/null) | cat >&2; return ${PIPESTATUS[0]}; }
)bash";

struct Case {
  const char* name;
  const char* setup;    // what must succeed before
  const char* command;  // what must fail
  int code;
  std::vector<const char*> parts;  // of the one line on stderr
  bool starts = false;             // the run starts, so that files may appear
};
void PrintTo(const Case& c, std::ostream* out) { *out << c.command; }

constexpr bool kStarts = true;

// One case, one to three lines.
// clang-format off
const std::vector<Case> kCases = {
    // Command lines
    {"TrainNothing", "", "$train", 2, {"give either a CONFIG or --resume RUN"}},
    {"TrainConfigAndResume", "", "$train tiny.toml --resume out", 2,
     {"give either a CONFIG or --resume RUN"}},
    {"TrainTwoConfigs", "", "finish text.toml", 2,
     {"unexpected argument \"text.toml\"", "--KEY=VALUE"}},
    {"TrainFlagWithSpace", "", "finish --optim.lr 0.1", 2, {"unexpected argument", "--KEY=VALUE"}},
    {"TrainResumeWithOut", "", "$train --resume a --out out", 2, {"--out excludes --resume"}},
    {"TrainJsonWithoutDryRun", "", "finish --json", 2, {"--json requires --dry-run"}},
    {"TrainOutWithoutValue", "", "$train tiny.toml --out", 2, {"--out: 1 required", "--help"}},
    {"TrainOutEmpty", "", "$train tiny.toml --out ''", 2, {"--out: the value is empty"}},
    {"TrainOutEmptyBeforeAnother", "", "$train tiny.toml --out= --dry-run", 2,
     {"--out: the value is empty"}},
    {"TrainSetBeforeConfig", "", "$train --set optim.lr=-1 tiny.toml --out out", 2,
     {"optim.lr = -1 is out of range"}},
    {"TrainSetWithoutValue", "", "finish --set optim.lr", 2,
     {"found \"optim.lr\", expected key=value"}},
    {"TrainCellsAlone", "", "finish --cells", 2, {"--cells requires --json"}},
    {"TrainCellsNotJson", "", "echo nonsense | $train tiny.toml --dry-run --json --cells", 2,
     {"--cells: nonsense: "}},
    {"PeriodsWithoutWsds", "", "finish --optim.periods=2,4", 2,
     {"optim.periods is set, but optim.schedule is \"constant\""}},
    {"WsdsWithoutPeriods", "", "finish --optim.schedule=wsds", 2,
     {"needs optim.periods or ladder.parameters"}},
    {"PeriodsThatFall", "", "finish --optim.schedule=wsds --optim.periods=8,4", 2,
     {"optim.periods: 4 follows 8, expected rising"}},
    {"PeriodsAndSteps", "", "finish --optim.schedule=wsds --optim.periods=4,6", 2,
     {"train.steps = 8, but the last of optim.periods ends at step 6"}},
    {"LadderTooSmall", "", "finish --ladder.parameters=1", 2, {"optim.periods"}},
    {"LadderTooLarge", "", "finish --ladder.parameters=1000000000000000 --ladder.micro_batch=128", 2,
     {"ladder.parameters: ", "out of range"}},
    {"LadderWithoutMultiples", "", "finish --ladder.parameters=100000 --ladder.multiples=[]", 2,
     {"ladder.multiples is empty"}},
    {"EvalNothing", "", "$eval", 2, {"RUN is required", "--help"}},
    {"EvalOtherKey", "", "$eval out --optim.lr=1", 2, {"--optim.lr=1", "only keys of [eval]"}},
    {"ParamsNothing", "", "$params", 2, {"CONFIG is required", "--help"}},
    {"ParamsUnknownKey", "", "$params tiny.toml --model.d_modle=8", 2,
     {"model.d_modle", "\"model.d_model\"?"}},
    {"ParamsMatchAlone", "", "$params tiny.toml --match parameters", 2, {"--match requires --to"}},
    {"ParamsToAlone", "", "$params tiny.toml --to tiny.toml", 2, {"--to requires --match"}},
    {"ParamsMatchUnknown", "", "$params tiny.toml --match flop --to tiny.toml --by model.d_ff", 2,
     {"unknown quantity \"flop\"", "did you mean \"flops\"?"}},
    {"ParamsMatchMissingReference", "", "$params tiny.toml --match flops --to none --by model.d_ff",
     2, {"none: cannot read"}},
    {"ParamsNoMatch", "",
     "$params tiny.toml --match parameters --to tiny.toml --to-set model.d_model=4 --by model.d_ff",
     2, {"no value of model.d_ff makes parameters equal to", "the nearest is 1 with", "%, more than 1 %",
         "allow more with --tolerance"}},
    {"ParamsToleranceIsNaN", "",
     "$params tiny.toml --match parameters --to tiny.toml --to-set model.d_model=4 --by model.d_ff "
     "--tolerance=nan",
     2, {"--tolerance: Value nan not in range 0 to 1e+09"}},
    {"SweepNoMatch", "", "matched 'tolerance = 0.5'", 2,
     {"s.toml:5: match: cell b: no value of model.d_ff makes parameters equal to",
      "more than 0.5 %", "allow more with match.tolerance"}},
    {"SweepNoMultiple", "", "matched 'multiple = 2000000000000'", 2,
     {"s.toml:5: match: cell b: model.d_ff takes no multiple of 2000000000000, only 1 to"}},
    {"ParamsStdoutFull", "", "$params tiny.toml >/dev/full", 1,
     {"standard output cannot be written"}},
    {"TaskNothing", "", "$task", 2, {"expected list or sample"}},
    {"TaskUnknownCommand", "", "$task smaple recall", 2, {"not expected: ", "smaple"}},
    {"TaskListArgument", "", "$task list recall", 2, {"not expected: recall"}},
    {"TaskSampleNothing", "", "$task sample", 2, {"task is required"}},
    {"TaskUnknown", "", "$task sample recal", 2,
     {"unknown task \"recal\"", "nearest is \"recall\""}},
    {"TaskDifficultyTooHigh", "", "$task sample recall --difficulty=129", 2,
     {"difficulty 129", "expected 1 to 128"}},
    {"TaskDifficultyZero", "", "$task sample state_tracking --difficulty=0", 2,
     {"difficulty 0", "expected 1 to 1024"}},
    {"TaskDifficultyWord", "", "$task sample recall --difficulty=hard", 2, {"--difficulty = hard"}},
    {"TaskNegativeCount", "", "$task sample recall --n=-1", 2, {"--n: Value -1 not in range"}},
    {"TaskNegativeSeed", "", "$task sample recall --seed=-1", 2, {"--seed: Value -1 not in range"}},
    {"TaskUnknownSplit", "", "$task sample recall --split=test", 2, {"test not in {train,eval}"}},
    {"TaskUnknownKnob", "", "$task sample recall --querys=3", 2,
     {"task.querys", "\"task.queries\"?"}},
    {"TaskKnobOutOfRange", "", "$task sample recall --queries=0", 2,
     {"task.queries = 0", "expected 1 to 1024"}},
    {"TaskStagesDoNotMatch", "", "$task sample recall --difficulties=4,8", 2,
     {"task.stage_steps has 1", "as many"}},
    {"TaskStdoutFull", "", "$task sample recall >/dev/full", 1,
     {"standard output cannot be written"}},
    {"BenchNothing", "", "$bench", 2, {"subcommand is required", "--help"}},
    {"BenchStepNothing", "", "$bench step", 2, {"CONFIG is required", "--help"}},
    {"BenchStepOtherKey", "", "$bench step tiny.toml --optim.warmpu=1", 2,
     {"--optim.warmpu: unknown key"}},
    {"BenchOpsConfig", "", "$bench ops tiny.toml", 2, {"not expected: tiny.toml"}},
    {"BenchOpsUnknownDevice", "", "$bench ops --device=gpu", 2, {"gpu not in {auto,cpu,cuda}"}},
    {"BenchOpsNoCase", "", "$bench ops --device=cpu --filter=matmull", 2,
     {"\"matmull\" matches no case", "matmul/"}},
    {"BenchOpsBrokenFilter", "", "$bench ops --device=cpu --filter='('", 2,
     {"\"(\" is no regular expression"}},

    {"WorkerOfNone", "", "$train --worker=0", 2, {"--worker: Value 0 not in range"}},
    {"WorkerWithConfig", "", "$train tiny.toml --worker=2 --out out", 2,
     {"--worker and --devices take nothing else"}},
    {"WorkerLineIsNoJson", "", "echo tiny.toml | $train --worker=2", 2, {"--worker: line 1: "}},
    {"WorkerLineWithoutOutput", "", R"(echo '{"arguments": []}' | $train --worker=2)", 2,
     {"--worker: line 1: ", "'output' not found"}},

    // Settings
    {"ConfigMissing", "", "$train none.toml --out out", 2,
     {"none.toml: cannot read: No such file"}},
    {"ConfigIsDirectory", "mkdir dir", "$train dir --out out", 2,
     {"dir: cannot read: Is a directory"}},
    {"ConfigNotToml", "echo '[model' > a.toml", "$train a.toml --out out", 2,
     {"a.toml:1: not TOML"}},
    {"UnknownKeyInFile", "echo '[optim]\nrate = 1' > a.toml", "$train a.toml --out out", 2,
     {"a.toml:2: unknown key \"optim.rate\"; did you mean \""}},
    {"UnknownFlag", "", "finish --optim.warmpu=1", 2,
     {"--optim.warmpu: unknown key", "did you mean \"optim.warmup\"?"}},
    {"UnknownKeyWithoutSection", "", "finish --lr=1", 2,
     {"unknown key \"lr\"; did you mean \"optim.lr\"?"}},
    {"SectionWithoutKey", "", "finish --task=recall", 2,
     {"unknown key \"task\"; did you mean \"task.name\"?"}},
    {"UnknownKnobOfTask", "", "finish --task.intervall=1", 2, {"did you mean \"task.interval\"?"}},
    {"KeyTwice", "echo '[optim]\nlr = 1\nlr = 2' > a.toml", "$train a.toml --out out", 2,
     {"a.toml:3: key \"optim.lr\" is given twice"}},
    {"SectionTwice", "echo '[optim]\n[optim]' > a.toml", "$train a.toml --out out", 2,
     {"a.toml:2: "}},
    {"WrongTypeInFile", "echo '[model]\nd_model = \"wide\"' > a.toml", "$train a.toml --out out", 2,
     {"a.toml:2: model.d_model = \"wide\" is a string, expected an integer"}},
    {"WrongTypePattern", "echo '[model]\npattern = \"attention\"' > a.toml",
     "$train a.toml --out out", 2,
     {"model.pattern = \"attention\" is a string, expected a list of strings"}},
    {"FractionForInteger", "", "finish --train.steps=1.5", 2,
     {"train.steps = 1.5 is a number, expected an integer"}},
    {"IntegerTooLarge", "", "finish --train.steps=99999999999999999999", 2,
     {"train.steps", "expected an integer"}},
    {"LearningRateNegative", "", "finish --optim.lr=-1", 2,
     {"optim.lr = -1", "out of range, expected 0 to 10"}},
    {"LearningRateNaN", "", "finish --optim.lr=nan", 2,
     {"optim.lr = nan", "out of range, expected 0 to 10"}},
    {"EpsilonZero", "", "finish --optim.eps=0", 2, {"optim.eps = 0", "out of range"}},
    {"BatchZero", "", "finish --train.batch=0", 2,
     {"train.batch = 0 is out of range, expected 1 to"}},
    {"NotAChoice", "", "finish --optim.schedule=cosin", 2,
     {"constant, cosine, wsd", "did you mean \"cosine\"?"}},
    {"UnknownDevice", "", "finish --device=gpu", 2, {"device = \"gpu\"", "auto, cpu"}},
    {"NotUtf8", "", "finish --study=$'\\xff'", 2, {"--study: the value is not UTF-8"}},
    {"NewlineInValue", "", "finish --study=$'a\\nb'", 2, {"study \"a b\" cannot be a directory"}},
    {"StudyIsPath", "", "finish --study=a/b", 2, {"study = \"a/b\" is not a folder name"}},
    {"HeadsDoNotDivide", "", "finish --mixer.attention.heads=3", 2,
     {"mixer.attention.heads: d_model = 16", "heads = 3", "change one"}},
    {"KvHeadsDoNotDivide", "", "finish --mixer.attention.heads=4 --mixer.attention.kv_heads=3", 2,
     {"mixer.attention.kv_heads: heads = 4 is not a multiple of kv_heads = 3"}},
    {"OddHeadDimWithRope", "", "finish --mixer.attention.head_dim=7", 2,
     {"7 is odd", "even head_dim or rope_theta = 0"}},
    {"RopeThetaOne", "", "finish --mixer.attention.rope_theta=1", 2,
     {"theta is 1, expected more than 1, or 0"}},
    {"TooManyHeads", "", "finish --mixer.gated_delta.heads=64", 2,
     {"mixer.gated_delta.key_dim: d_model = 16", "heads = 64", "set key_dim"}},
    {"UnknownMixer", "", "finish --model.pattern=atention", 2,
     {"unknown mixer \"atention\"", "attention"}},
    {"UnknownMixerWithDash", "", "finish --model.pattern=attention,gated-delta", 2,
     {"unknown mixer \"gated\""}},
    {"UnknownMixerKey", "", "finish --mixer.attention.windw=8", 2,
     {"did you mean \"mixer.attention.window\"?"}},
    {"ListWhoseQuotesTheShellTook", "", "finish --model.pattern=[\"attention\",\"gated_delta\"]", 2,
     {"[attention,gated_delta] is not a TOML value", "a list is also taken as a,b"}},
    {"EmptyPattern", "", "finish --model.pattern=[]", 2,
     {"model.pattern is empty; name at least one mixer"}},
    {"UnknownTaskName", "", "finish --task.name=state_traking", 2,
     {"nearest is \"state_tracking\""}},
    {"NothingToTrainOn", "touch a.toml", "$train a.toml --out out", 2,
     {"set task.name", "or data.path"}},
    {"TaskAndText", "", "finish --data.path=text", 2,
     {"task.name = \"state_tracking\"", "data.path", "drop one"}},
    {"AccumulateDoesNotDivide", "", "finish --train.accumulate=3", 2,
     {"train.batch = 4", "train.accumulate = 3"}},
    {"VocabTooSmall", "", "finish --model.vocab=5", 2,
     {"model.vocab = 5", "vocabulary of the data, 31"}},
    {"LengthTooShort", "", "finish --train.length=16", 2,
     {"train.length = 16 is too short", "difficulty 4", "raise it"}},
    {"LengthTooShortLater", "", "finish --train.length=32", 2,
     {"train.length = 32 is too short", "difficulty 8"}},
    {"EvalDifficulty", "", "finish --eval.difficulties=4,1025", 2,
     {"eval.difficulties: difficulty 1025 of task state_tracking: expected 1 to 1024"}},
    {"EvalDifficultyOfTask", "",
     "finish --task.name=recall --task.stage_steps=3,0 --eval.difficulties=200", 2,
     {"eval.difficulties: difficulty 200 of task recall: expected 1 to 128"}},
    {"PositionsOfTraining", "", "finish --model.positions=63", 2,
     {"weft train: model.positions = 63 is less than the 64 tokens of a row; raise it"}},
    {"PositionsOfEvaluation", "", "finish --model.positions=64 --eval.difficulties=4,64", 2,
     {"weft train: eval.difficulties: difficulty 64: model.positions = 64 is less than the ",
      " tokens of a row; raise it"}},
    {"PositionsOfPromotion", "",
     "finish --model.positions=96 --train.length=96 --eval.difficulties=4 "
     "--task.promote_accuracy=0.5 --task.difficulties=13,14", 2,
     {"weft train: task.promote_accuracy: difficulty 13: model.positions = 96 is less than the 128"}},
    {"StagesDoNotMatch", "", "finish --task.difficulties=4", 2,
     {"task.stage_steps has 2", "task.difficulties 1"}},
    {"StageDescends", "", "finish --task.difficulties=8,4", 2,
     {"task.difficulties[1] = 4", "ascending"}},
    {"TooManyTokens", "", "finish --train.steps=1000000000000 --train.batch=1000000", 2,
     {"tokens, expected at most"}},
    {"ModelOutOfMemory", "", "finish --model.d_model=65536 --model.layers=100", 5,
     {"out of memory", "this process may use"}},
    {"BatchOutOfMemory", "", "finish --train.batch=1000000 --train.length=1048576", 5,
     {"out of memory", "1000000 rows of 1048576 tokens", "raise train.accumulate"}},
    {"RowsOutOfMemory", "",
     "finish --train.batch=1000000 --train.accumulate=1000000 --train.length=65536", 5,
     {"out of memory", "reduce train.batch"}},
    {"DryRunIsCheckedToo", "", "finish --dry-run --mixer.attention.heads=3", 2, {"d_model = 16"}},
    {"DryRunChecksTheStages", "", "finish --dry-run --train.length=32", 2,
     {"train.length = 32 is too short", "difficulty 8"}},

    // Text
    {"TextMissing", "", "$train text.toml --out out --data.path=none", 3,
     {"data.path: none does not exist; give"}},
    {"TextEmpty", ": > empty", "$train text.toml --out out --data.path=empty", 3,
     {"data.path: empty holds no text"}},
    {"TextEmptyDirectory", "mkdir dir; touch dir/a dir/.hidden",
     "$train text.toml --out out --data.path=dir", 3, {"data.path: dir holds no text"}},
    {"TextIsDevice", "", "$train text.toml --out out --data.path=/dev/zero", 3,
     {"/dev/zero is no regular file"}},
    {"TextNameTooLong", "", "$train text.toml --out out --data.path=$(printf %300s | tr ' ' x)", 3,
     {"File name too long"}},
    {"TextLinksInCircle", "mkdir dir; ln -s . dir/again; cp text dir",
     "$train text.toml --out out --data.path=dir", 3,
     {"data.path: dir: cannot read dir/again", "symbolic links"}},
    {"TextBelowOneRow", "echo short > text", "$train text.toml --out out", 3,
     {"text: the training part has", "one row needs 33"}},
    {"TextBelowOneBatch", "", "$train text.toml --out out --train.batch=10000", 3,
     {"fewer than one batch of 10000", "smaller train.batch"}},
    {"HeldOutTooSmall", "", "$train text.toml --out out --data.held_out=1e-9", 3,
     {"the held-out part has 0 bytes", "a larger data.held_out, or a smaller data.piece_bytes"}},

    // Output
    {"OutBelowFile", "touch file", "$train tiny.toml --out file/out", 1,
     {"file/out/tiny/", "a file stands where"}},
    {"OutBelowDevice", "", "$train tiny.toml --out /dev/full/out", 1,
     {"/dev/full/out/tiny/", "Not a directory"}},
    {"OutInProc", "", "$train tiny.toml --out /proc/weft", 1,
     {"/proc/weft/tiny/", "choose another output directory"}},
    {"OutHasNoRoomForOneByte", "", "limited 0 finish", 1,
     {"out/tiny/", "File too large", "ulimit -f"}},
    {"OutIsReadOnly", "unshare -m true || exit 77",
     "unshare -m bash -c \"mkdir dir && mount -t tmpfs -o ro none dir && $train tiny.toml "
     "--out dir/out\"", 1,
     {"dir/out/tiny/", "Read-only file system; choose a directory that you may write"}},
    {"OutIsFullFromStart", "unshare -m true || exit 77",
     "small_disk 4k \"$train tiny.toml --out out/runs || { code=\\$?; "
     "ls -A out | grep . && code=99; exit \\$code; }\"", 1,
     {"out/runs", "No space left on device; free some space"}},
    {"OutIsFullAtCheckpoint", "unshare -m true || exit 77",
     "small_disk 100k \"$train tiny.toml --out out\"", 1,
     {"out/tiny/", "/checkpoints/step-00000004",
      "No space left on device; free some space"}, kStarts},
    {"FileLimitAtCheckpoint", "", "limited 8 finish", 1,
     {"/checkpoints/step-00000004", "File too large"}, kStarts},
    {"StdoutFull", "", "finish >/dev/full", 1, {"standard output cannot be written"}, kStarts},

    // Run directories
    {"RunOfOtherConfig", "finish; sed -i 's/^lr = .*/lr = 0.5/' $run/resolved.toml", "finish", 2,
     {"resolved.toml: optim.lr is 0.5, this run asks for 0.001", "another config"}},
    {"RunStartedAlready", "crash", "finish", 1,
     {"has been started already", "weft train --resume out/tiny/"}},
    {"RunIsLocked", "crash", "flock $run/lock $train --resume $run", 1,
     {"another process is writing this run"}},
    {"ResumeNothing", "", "$train --resume out/tiny/none", 3,
     {"out/tiny/none/resolved.toml: is missing"}},
    {"ResumeAnyDirectory", "mkdir dir", "$train --resume dir", 3,
     {"dir/resolved.toml: is missing", "no run directory"}},
    {"ResumeWithSettings", "crash", "$train --resume $run --optim.lr=1", 2,
     {"--optim.lr=1", "keeps its settings"}},
    {"ResumeWithEditedSettings", "crash; sed -i 's/^lr = .*/lr = 0.5/' $run/resolved.toml",
     "$train --resume $run", 3, {"resolved.toml has changed since this checkpoint", "restore it"}},
    {"ResumeWithBrokenSettings", "crash; echo '[' >> $run/resolved.toml", "$train --resume $run", 2,
     {"resolved.toml:", "not TOML"}},
    {"ResumeWithChangedText", "config=text.toml crash; echo more >> text",
     "$train --resume $run", 3,
     {"checkpoints/step-00000002", "the text in data.path has changed",
      "restore it or start a new run"}},
    {"ResumeWithoutText", "config=text.toml crash; rm text", "$train --resume $run", 3,
     {"text does not exist"}},
    {"ResumeWithoutJournal", "crash; rm $run/journal.jsonl", "$train --resume $run", 3,
     {"journal.jsonl: is missing"}},
    {"ResumeWithoutStatus", "crash; rm $run/status.json", "$train --resume $run", 3,
     {"status.json: cannot read"}},
    {"ResumeWithBrokenStatus", "crash; echo '{' > $run/status.json", "$train --resume $run", 3,
     {"status.json: is not"}},
    {"JournalBrokenInTheMiddle", "crash; sed -i '4s/.*/{\"stream\":/' $run/journal.jsonl",
     "$train --resume $run", 3,
     {"journal.jsonl:4: broken line: not JSON", "resume from a checkpoint before it"}},
    {"JournalRowWithoutColumn", "crash; sed -i '4s/\"loss\"/\"lost\"/' $run/journal.jsonl",
     "$train --resume $run", 3, {"journal.jsonl:4: broken line: ", "loss"}},
    {"JournalLostItsEnd", "crash; sed -i '4,$d' $run/journal.jsonl", "$train --resume $run", 3,
     {"journal.jsonl: the journal has", "the checkpoint expects", "use an older checkpoint"}},
    {"JournalIsAnother", "crash; echo >> $run/journal.jsonl; sed -i '1s/^/ /' $run/journal.jsonl",
     "$train --resume $run", 3, {"journal.jsonl"}},

    // Checkpoints
    {"ModelTruncated", "crash; truncate -s -1 $run/checkpoints/*/model.safetensors",
     "$train --resume $run", 3,
     {"model.safetensors: ", "truncated", "no older checkpoint, start the run again"}},
    {"ModelEmpty", "crash; : > $(ls $run/checkpoints/*/model.safetensors)",
     "$train --resume $run", 3, {"model.safetensors: has 0 bytes, expected a safetensors file"}},
    {"ModelMissing", "crash; rm $run/checkpoints/*/model.safetensors", "$train --resume $run", 3,
     {"model.safetensors: cannot read: No such file", "start the run again"}},
    {"OptimizerTruncated", "crash; truncate -s 100 $run/checkpoints/*/optimizer.safetensors",
     "$train --resume $run", 3, {"optimizer.safetensors: the header claims", "truncated"}},
    {"FlippedByteInTensor", "crash; flip $run/checkpoints/*/model.safetensors -1",
     "$train --resume $run", 3,
     {"model.safetensors: tensor head: is corrupted: checksum", "start the run again"}},
    {"FlippedByteInMoment", "crash; flip $run/checkpoints/*/optimizer.safetensors -1",
     "$train --resume $run", 3, {"optimizer.safetensors: tensor v.head: is corrupted: checksum"}},
    {"FlippedByteInHeader", "crash; flip $run/checkpoints/*/model.safetensors 20",
     "$train --resume $run", 3, {"model.safetensors: "}},
    {"FlippedByteInState",
     "crash; sed -i 's/\"rows\": 16/\"rows\": 17/' $run/checkpoints/*/state.json",
     "$train --resume $run", 3, {"state.json: is corrupted: checksum"}},
    {"StateMissing", "crash; rm $run/checkpoints/*/state.json", "$train --resume $run", 3,
     {"state.json: cannot read"}},
    {"NewestBrokenOlderNamed",
     "finish; sed -i 's/\"done\"/\"running\"/' $run/status.json; "
     "flip $run/checkpoints/step-00000008/model.safetensors -1",
     "$train --resume $run", 3,
     {"tensor head: is corrupted", "the next older checkpoint is out/tiny/",
      "step-00000004, remove"}},
    {"TensorMissing",
     "crash; $train tiny.toml --out less --model.layers=1; rm -r $run/checkpoints/*; "
     "cp -r less/tiny/*/checkpoints/step-00000004 $run/checkpoints",
     "$train --resume $run", 3,
     {"model.safetensors: tensor blocks.1.", "is missing, expected F32 [", "of another model"}},
    {"TensorTooMany",
     "crash; $train tiny.toml --out more --model.layers=3; rm -r $run/checkpoints/*; "
     "cp -r more/tiny/*/checkpoints/step-00000004 $run/checkpoints",
     "$train --resume $run", 3,
     {"model.safetensors: tensor blocks.2.", "is not part of this model", "of another model"}},
    {"TensorOfOtherShape",
     "crash; $train tiny.toml --out wide --model.d_ff=32; rm -r $run/checkpoints/*; "
     "cp -r wide/tiny/*/checkpoints/step-00000004 $run/checkpoints",
     "$train --resume $run", 3,
     {"model.safetensors: tensor blocks.0.mlp.", "is F32 [", "expected F32 [", "of another model"}},
    {"CheckpointOfOtherConfig",
     "crash; $train tiny.toml --out other --optim.lr=0.5; rm -r $run/checkpoints/*; "
     "cp -r other/tiny/*/checkpoints/step-00000004 $run/checkpoints",
     "$train --resume $run", 3,
     {"step-00000004: ", "resolved.toml has changed since this checkpoint"}},
    {"CheckpointWithOtherModelFile",
     "finish; sed -i 's/\"done\"/\"running\"/' $run/status.json; "
     "cp $run/checkpoints/step-00000004/model.safetensors $run/checkpoints/step-00000008",
     "$train --resume $run", 3, {"step-00000008/model.safetensors: belongs to another checkpoint"}},

    // Evaluation
    {"EvalNoRun", "", "$eval out/tiny/none", 3, {"out/tiny/none/resolved.toml: is missing"}},
    {"EvalNoCheckpoint", "finish; rm -r $run/checkpoints", "$eval $run", 3,
     {"has no checkpoint yet; train it first"}},
    {"EvalFlippedByte", "finish; flip $run/checkpoints/step-00000008/model.safetensors -1",
     "$eval $run", 3, {"tensor head: is corrupted", "step-00000004"}},
    {"EvalUnknownKey", "finish", "$eval $run --eval.sample=3", 2,
     {"did you mean \"eval.samples\"?"}},
    {"EvalTooHard", "finish --task.name=recall", "$eval $run --eval.difficulties=200", 2,
     {"difficulty 200 of task recall"}},
    {"EvalTooLong", "finish --model.positions=64", "$eval $run --eval.difficulties=64", 2,
     {"weft eval: eval.difficulties: difficulty 64: model.positions = 64 is less than the "}},
    {"EvalNothingHeldOut", "config=text.toml finish --data.held_out=0", "$eval $run", 2,
     {"data.held_out = 0"}},
    {"EvalStdoutFull", "finish", "$eval $run --json >/dev/full", 1,
     {"standard output cannot be written"}},

    // Divergence
    {"LossIsNaN", "",
     "finish --optim.lr=10 --optim.weight_decay=10 --optim.clip=0 --model.init_std=10 "
     "--train.steps=100", 4,
     {"diverged at step", "the last checkpoint is kept; try a smaller optim.lr"}, kStarts},
};
// clang-format on

// Contents of what a failed command must leave alone, and the names of all else.
std::map<std::string, std::string> FilesBelow(const std::string& root) {
  std::map<std::string, std::string> files;
  if (!fs::exists(root)) return files;
  for (const auto& entry : fs::recursive_directory_iterator(root)) {
    const std::string path = entry.path().string();
    const bool kept = path.find("/checkpoints/") != path.npos || path.ends_with(".toml");
    if (entry.is_regular_file()) files[path] = kept ? Slurp(path) : "";
  }
  return files;
}

class Sandbox {
 public:
  Sandbox() {
    Spill(scratch_ / "tiny.toml", kTinyToml);
    Spill(scratch_ / "text.toml", kTextToml);
    Spill(scratch_ / "text", Squares(4000));
  }
  // Runs a bash script; returns its exit code. Its output is in out() and err().
  int Bash(const std::string& script) {
    Process process(scratch_.path(), {"/bin/bash", "-c", kPrelude + script});
    const int code = process.Wait();
    out_ = process.out();
    err_ = process.err();
    return code;
  }
  const std::string& out() const { return out_; }
  const std::string& err() const { return err_; }
  std::string operator/(const std::string& name) const { return scratch_ / name; }
  const std::string& path() const { return scratch_.path(); }
  // The one run below `out`.
  std::string Run(const std::string& out = "out") const {
    const std::string run = RunBelow(scratch_ / out);
    EXPECT_NE(run, "") << "there is no run in " << out;
    return run;
  }

 private:
  Scratch scratch_;
  std::string out_, err_;
};

class BadInput : public testing::TestWithParam<Case> {};

TEST_P(BadInput, IsRefused) {
  const Case& c = GetParam();
  Sandbox box;
  const int prepared = box.Bash(c.setup);
  if (prepared == 77) GTEST_SKIP() << "needs the right to mount";
  ASSERT_EQ(prepared, 0) << box.err();
  const auto before = FilesBelow(box / "out");

  EXPECT_EQ(box.Bash(c.command), c.code) << box.err();
  std::vector<std::string> lines = Lines(box.err());
  if (c.starts) {
    ASSERT_FALSE(lines.empty());
    lines = {lines.back()};
  }
  ASSERT_EQ(lines.size(), 1u) << box.err();
  EXPECT_TRUE(lines[0].starts_with("weft ")) << lines[0];
  for (const char* part : c.parts)
    EXPECT_NE(lines[0].find(part), std::string::npos) << lines[0] << "\nlacks " << part;

  const auto after = FilesBelow(box / "out");
  if (!c.starts) {
    EXPECT_EQ(before, after);
    EXPECT_EQ(fs::exists(box / "out"),
              !before.empty() || std::string(c.command).find("small_disk") == 0);
  }
  for (const auto& [path, content] : after) EXPECT_EQ(path.find(".tmp-"), path.npos) << path;
}

INSTANTIATE_TEST_SUITE_P(Cli, BadInput, testing::ValuesIn(kCases),
                         [](const auto& info) { return std::string(info.param.name); });

// What a run must be able to live through

void ExpectSameEnd(const std::string& run, const std::string& straight) {
  EXPECT_EQ(ReadStatus(run).state, RunState::kDone);
  ExpectSameRuns(run, straight);
  EXPECT_EQ(ReadTable(run + "/run.h5", "/train").rows(),
            ReadTable(straight + "/run.h5", "/train").rows());
}

TEST(Lives, ABrokenLastLineOfTheJournalIsCut) {
  for (const char* tail : {"{\"stream\":\"train\",\"st", "not JSON\n", "\\0\\0\\0"}) {
    Sandbox box;
    ASSERT_EQ(box.Bash("$train tiny.toml --out straight && crash && printf '" + std::string(tail) +
                       "' >> $run/journal.jsonl"),
              0);
    ASSERT_EQ(box.Bash("$train --resume $run"), 0) << box.err();
    ExpectSameEnd(box.Run(), box.Run("straight"));
  }
}

TEST(Lives, AFullDiskThatIsFreed) {
  Sandbox box;
  ASSERT_EQ(box.Bash("$train tiny.toml --out straight; limited 8 finish"), 1) << box.err();
  const Status status = ReadStatus(box.Run());
  EXPECT_EQ(status.state, RunState::kFailed);
  EXPECT_NE(status.message.find("File too large"), std::string::npos) << status.message;
  ASSERT_EQ(box.Bash("$train --resume $run"), 0) << box.err();
  ExpectSameEnd(box.Run(), box.Run("straight"));
}

TEST(Lives, AKillBetweenTheLastCheckpointAndItsSnapshot) {
  Sandbox box;
  ASSERT_EQ(box.Bash("$train tiny.toml --out straight; cp -r straight out; rm $run/run.h5; "
                     "sed -i 's/\"done\"/\"running\"/' $run/status.json"),
            0);
  ASSERT_EQ(box.Bash("$train --resume $run"), 0) << box.err();
  ExpectSameEnd(box.Run(), box.Run("straight"));
}

TEST(Lives, ADoneRunStaysAsItIs) {
  Sandbox box;
  ASSERT_EQ(box.Bash("finish"), 0) << box.err();
  const auto before = FilesBelow(box / "out");
  for (const char* again : {"$train --resume $run", "finish", "finish --threads=1"}) {
    EXPECT_EQ(box.Bash(again), 0);
    EXPECT_NE(box.err().find(" is done\n"), std::string::npos) << box.err();
  }
  EXPECT_EQ(FilesBelow(box / "out"), before);
}

TEST(Lives, DivergenceKeepsTheLastGoodCheckpoint) {
  Sandbox box;
  const std::string flags =
      " --optim.lr=10 --optim.weight_decay=10 --optim.clip=0 --train.steps=100 "
      "--train.checkpoint_every=1 --train.keep=1";
  ASSERT_EQ(box.Bash("finish" + flags), 4) << box.err();
  const std::string run = box.Run();
  const Status status = ReadStatus(run);
  EXPECT_EQ(status.state, RunState::kDiverged);
  EXPECT_EQ(status.exit_code, 4);
  EXPECT_NE(status.message.find("diverged at step"), std::string::npos);
  const auto kept = FindLatest(run);
  ASSERT_TRUE(kept);
  EXPECT_GT(kept->step, 1);
  for (const char* name : {"/model.safetensors", "/optimizer.safetensors"}) {
    const SafetensorsFile file(kept->path + name);
    for (const auto& entry : file.entries()) {
      std::vector<float> values(static_cast<size_t>(entry.end - entry.begin) / sizeof(float));
      file.Read(entry, values.data());
      for (const float x : values) ASSERT_TRUE(std::isfinite(x)) << entry.name;
    }
  }
  EXPECT_EQ(ReadTable(run + "/run.h5", "/train").rows(), ReadStatus(run).step);
  EXPECT_EQ(box.Bash("$eval $run --json"), 0) << box.err();
  EXPECT_EQ(box.Bash("$train --resume $run"), 4) << "the same bits diverge again";
  EXPECT_EQ(FindLatest(run)->step, kept->step);
}

// Starts a long run, sends `signal` after some steps and expects a checkpoint, `code`, and the same
// end after a resume.
void StopAndGoOn(int signal, int code) {
  Sandbox box;
  const std::vector<std::string> command = {Program("train"),
                                            "tiny.toml",
                                            "--out",
                                            "out",
                                            "--train.steps=400",
                                            "--task.stage_steps=40,0",
                                            "--train.checkpoint_every=0"};
  Process process(box.path(), command);
  std::string run;
  for (int64_t rows = 0; rows < 20;) {
    ASSERT_FALSE(process.Ended()) << process.err();
    std::this_thread::sleep_for(std::chrono::milliseconds(2));
    const std::string line = Lines(process.err()).empty() ? "" : Lines(process.err())[0];
    if (line.empty()) continue;
    run = box / line.substr(line.find("out/"));
    if (!fs::exists(run + "/journal.jsonl")) continue;
    const auto journal = ReadJournal(run + "/journal.jsonl");
    rows = journal.tables.empty() ? 0 : journal.tables[0].rows();
  }
  ASSERT_TRUE(process.Send(signal));
  EXPECT_EQ(process.Wait(), code) << process.err();
  EXPECT_NE(Lines(process.err()).back().find("continue with: weft train --resume out/tiny/"),
            std::string::npos);
  const Status status = ReadStatus(run);
  EXPECT_EQ(status.state, RunState::kPreempted);
  EXPECT_EQ(status.exit_code, code);
  ASSERT_TRUE(FindLatest(run));
  EXPECT_EQ(FindLatest(run)->step, status.step);
  EXPECT_LT(status.step, 400);
  EXPECT_EQ(ReadTable(run + "/run.h5", "/train").rows(), status.step);
  EXPECT_EQ(ReadJournal(run + "/journal.jsonl").tables[0].rows(), status.step);

  ASSERT_EQ(box.Bash("$train --resume $run"), 0) << box.err();
  ASSERT_EQ(box.Bash("$train tiny.toml --out straight --train.steps=400 --task.stage_steps=40,0 "
                     "--train.checkpoint_every=0"),
            0);
  ExpectSameEnd(run, box.Run("straight"));
}

TEST(Lives, CtrlC) { StopAndGoOn(SIGINT, 130); }
TEST(Lives, Sigterm) { StopAndGoOn(SIGTERM, 75); }
TEST(Lives, Sigusr1) { StopAndGoOn(SIGUSR1, 75); }
TEST(Lives, Sighup) { StopAndGoOn(SIGHUP, 75); }

TEST(Lives, AHangupUnderNohup) {
  Sandbox box;
  ASSERT_EQ(box.Bash("$train tiny.toml --out straight"), 0) << box.err();
  ASSERT_EQ(box.Bash("trap '' HUP; $train tiny.toml --out out & run=$!;"
                     "until [ -s out/tiny/*/journal.jsonl ] || ! kill -0 $run; do sleep 0.01; done;"
                     "for i in 1 2 3; do kill -HUP $run 2>/dev/null; sleep 0.01; done; wait $run"),
            0)
      << box.err();
  ExpectSameEnd(box.Run(), box.Run("straight"));
}

TEST(Lives, ATerminalThatIsGone) {
  for (const char* gone : {"2>/dev/full", "2>&-", ">&- 2>&-", "<&- >&- 2>&-", "2>&1 | true"}) {
    Sandbox box;
    ASSERT_EQ(box.Bash("$train tiny.toml --out straight --train.log_every=1"), 0) << box.err();
    box.Bash("finish --train.log_every=1 " + std::string(gone));
    EXPECT_EQ(Slurp(box.Run() + "/lock"), "") << gone;
    ExpectSameEnd(box.Run(), box.Run("straight"));
  }
}

}  // namespace
}  // namespace weft
