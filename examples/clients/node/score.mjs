// Scores text with a Plaudit reward service: one pair by Score, then several by ScoreStream.
//   npm ci && node score.mjs [HOST:PORT]
// Nothing is generated: the protos are loaded as they are. Where the service asks for a token, set PLAUDIT_TOKEN.
import { once } from "node:events";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";

const ADDRESS = process.argv[2] ?? "127.0.0.1:50052";
const PROTOS = fileURLToPath(new URL("../../../protos", import.meta.url));
const TIMEOUT_MS = 30_000;
const ITEMS_A_MESSAGE = 64;

const definition = protoLoader.loadSync("plaudit/v1/reward.proto", {
  includeDirs: [PROTOS],
  keepCase: true, // field names as in the protos and their documentation
  enums: String,
  longs: String, // a uint64 doesn't fit a number
  defaults: true,
  oneofs: true, // result.result says which of reward and error is set
});
const { RewardService } = grpc.loadPackageDefinition(definition).plaudit.v1;

const metadata = new grpc.Metadata();
metadata.set("x-plaudit-caller", "node-example"); // whom to share the model fairly with
if (process.env.PLAUDIT_TOKEN) metadata.set("authorization", `Bearer ${process.env.PLAUDIT_TOKEN}`);

const deadline = () => ({ deadline: Date.now() + TIMEOUT_MS });

/** Results of a few pairs, in their order. Each has a reward or an error of its own. */
function score(client, pairs) {
  return new Promise((resolve, reject) => {
    const request = { items: pairs.map((pair) => ({ pair })) };
    client.Score(request, metadata, deadline(), (error, response) =>
      error ? reject(error) : resolve(response.results),
    );
  });
}

/** Results of any number of pairs, as [index, result] in the order they are done. */
async function* scoreMany(client, pairs) {
  const stream = client.ScoreStream(metadata, deadline());
  const sending = send(stream, pairs);
  sending.catch(() => {}); // reading fails of the same, and tells
  for await (const { results } of stream) {
    for (const { item_id, result } of results) yield [Number(item_id), result];
  }
  await sending;
}

/** Writes while the server reads: it stops while as many items are in flight as its window holds. */
async function send(stream, pairs) {
  for (let start = 0; start < pairs.length; start += ITEMS_A_MESSAGE) {
    const chunk = pairs.slice(start, start + ITEMS_A_MESSAGE);
    const items = chunk.map((pair, offset) => ({ item_id: String(start + offset), item: { pair } }));
    if (!stream.write({ items })) await once(stream, "drain");
  }
  stream.end();
}

/** What is worth printing of a result: a score, or why there is none. */
function told({ result, reward, error }) {
  if (result === "error") return { error: error.message };
  return { reward: reward.reward, raw_reward: reward.raw_reward };
}

const prompt = "The film is";
const responses = [" a delight from start to end.", "", " two hours I won't get back."]; // the second can't be scored

const client = new RewardService(ADDRESS, grpc.credentials.createInsecure());
try {
  const [result] = await score(client, [{ prompt, response: responses[0] }]);
  console.log(JSON.stringify(told(result)));
  const pairs = responses.map((response) => ({ prompt, response }));
  for await (const [index, result] of scoreMany(client, pairs)) {
    console.log(JSON.stringify({ index, ...told(result) }));
  }
} catch (error) {
  console.error(`${ADDRESS}: ${error.message}`); // "14 UNAVAILABLE: …": nobody listens there
  process.exitCode = 1;
} finally {
  client.close();
}
