// The official Node SDK against a node: prints what came back as one JSON document.
// Arguments: the SDK's module. Environment: OPENAI_BASE_URL, OPENAI_API_KEY.
import { pathToFileURL } from "node:url";

const { default: OpenAI, toFile } = await import(pathToFileURL(process.argv[2]).href);
const client = new OpenAI({ maxRetries: 0 });
const messages = [{ role: "user", content: "hello" }];
const chat = { model: "echo", messages, temperature: 0 };
const tool = {
  type: "function",
  function: { name: "look", parameters: { type: "object", properties: { at: { type: "string" } } } },
};
const schema = {
  type: "object",
  properties: { word: { type: "string" } },
  required: ["word"],
  additionalProperties: false,
};
const found = {};

const whole = await client.chat.completions.create(chat);
found.chat = whole.choices[0].message.content;
found.usage = whole.usage;

found.stream = "";
const stream = await client.chat.completions.create({
  ...chat,
  stream: true,
  stream_options: { include_usage: true },
});
for await (const chunk of stream) {
  found.stream += chunk.choices[0]?.delta?.content ?? "";
  if (chunk.usage) found.streamUsage = chunk.usage;
}
const helper = client.chat.completions.stream(chat);
found.helper = (await helper.finalChatCompletion()).choices[0].message.content;

const called = await client.chat.completions.create({
  ...chat,
  messages: [{ role: "user", content: 'call look {"at": "b"}' }],
  tools: [tool],
});
found.call = called.choices[0].message.tool_calls[0].function;

const formed = await client.chat.completions.create({
  ...chat,
  messages: [{ role: "user", content: '{"word": "a"}' }],
  response_format: { type: "json_schema", json_schema: { name: "w", schema, strict: true } },
});
found.form = JSON.parse(formed.choices[0].message.content);

const response = await client.responses.create({ model: "echo", input: "hello", temperature: 0 });
found.response = response.output_text;
found.events = [];
const events = await client.responses.create({ model: "echo", input: "hi", stream: true });
for await (const event of events) found.events.push(event.type);

const vectors = await client.embeddings.create({ model: "letters", input: ["a", "b"] });
found.embeddings = vectors.data.map((item) => item.embedding.length);
found.models = (await client.models.list()).data.map((model) => model.id).sort();

try {
  await client.chat.completions.create({ ...chat, model: "nobody" });
} catch (error) {
  found.error = { kind: error.constructor.name, status: error.status, code: error.code };
}

const line = (name) => JSON.stringify({
  custom_id: name,
  method: "POST",
  url: "/v1/chat/completions",
  body: { ...chat, messages: [{ role: "user", content: name }] },
});
const file = await client.files.create({
  file: await toFile(Buffer.from(["a", "b"].map(line).join("\n")), "in.jsonl"),
  purpose: "batch",
  expires_after: { anchor: "created_at", seconds: 3600 },
});
let batch = await client.batches.create({
  input_file_id: file.id,
  endpoint: "/v1/chat/completions",
  completion_window: "24h",
});
while (["validating", "in_progress", "finalizing"].includes(batch.status)) {
  await new Promise((resolve) => setTimeout(resolve, 50));
  batch = await client.batches.retrieve(batch.id);
}
found.batch = { status: batch.status, counts: batch.request_counts };
const output = await (await client.files.content(batch.output_file_id)).text();
found.results = output.trim().split("\n").map((text) => JSON.parse(text))
  .map((item) => [item.custom_id, item.response.body.choices[0].message.content]).sort();
found.files = [];
for await (const item of client.files.list({ limit: 1 })) found.files.push(item.purpose);
found.deleted = (await client.files.delete(file.id)).deleted;
console.log(JSON.stringify(found));
