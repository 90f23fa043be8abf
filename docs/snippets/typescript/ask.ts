// Asks a member of a mob: node ask.js MOB MEMBER TEXT [INPUT_ID]
import { randomUUID } from "node:crypto";
import * as grpc from "@grpc/grpc-js";
import { loadSync } from "@grpc/proto-loader";
import type { ProtoGrpcType } from "./gen/bridge";
import type { BridgeServiceClient } from "./gen/mobd/v1/BridgeService";
import type { DeliverResponse__Output } from "./gen/mobd/v1/DeliverResponse";
import type { Input__Output } from "./gen/mobd/v1/Input";
import type { WatchInputResponse__Output } from "./gen/mobd/v1/WatchInputResponse";

const target = process.env["MOBD_TARGET"] ?? "localhost:7780";
const protos = process.env["MOBD_PROTO"] ?? "proto";
// What the server says with UNAVAILABLE may be repeated, because the input_id makes a repeat harmless.
const TRIES = 20;

const loaded = loadSync("mobd/v1/bridge.proto", {
  includeDirs: [protos],
  keepCase: true,
  longs: String,
  enums: String,
  defaults: true,
  oneofs: true,
});
const { mobd } = grpc.loadPackageDefinition(loaded) as unknown as ProtoGrpcType;

function deliver(bridge: BridgeServiceClient, mob: string, member: string, inputId: string, text: string) {
  const request = { mob_id: mob, member_id: member, input_id: inputId, content: { blocks: [{ text }] } };
  return new Promise<DeliverResponse__Output>((resolve, reject) => {
    bridge.Deliver(request, { deadline: Date.now() + 30_000 }, (error, answer) => {
      if (error || !answer) reject(error);
      else resolve(answer);
    });
  });
}

function follow(bridge: BridgeServiceClient, mob: string, member: string, inputId: string) {
  return new Promise<Input__Output>((resolve, reject) => {
    let last: Input__Output | null = null;
    const stream = bridge.WatchInput({ mob_id: mob, member_id: member, input_id: inputId });
    stream.on("data", (answer: WatchInputResponse__Output) => (last = answer.input));
    stream.on("error", reject);
    stream.on("end", () => (last ? resolve(last) : reject(new Error("the stream ended without an answer"))));
  });
}

async function repeated<T>(call: () => Promise<T>): Promise<T> {
  for (let left = TRIES; ; left--) {
    try {
      return await call();
    } catch (error) {
      if ((error as grpc.ServiceError).code !== grpc.status.UNAVAILABLE || left === 0) throw error;
      await new Promise((resolve) => setTimeout(resolve, 500));
    }
  }
}

async function main(): Promise<number> {
  const [mob, member, text, inputId = randomUUID()] = process.argv.slice(2);
  if (mob === undefined || member === undefined || text === undefined) {
    console.error("usage: ask MOB MEMBER TEXT [INPUT_ID]");
    return 2;
  }
  const bridge = new mobd.v1.BridgeService(target, grpc.credentials.createInsecure());
  try {
    const { rejected } = await repeated(() => deliver(bridge, mob, member, inputId, text));
    if (rejected) {
      console.error(`refused: ${rejected.reason}`);
      return 1;
    }
    const input = await repeated(() => follow(bridge, mob, member, inputId));
    if (input.state !== "INPUT_STATE_CONSUMED") {
      console.error(`${input.state}: ${input.reason}`);
      return 1;
    }
    console.log(input.output_json);
    return 0;
  } catch (error) {
    console.error((error as grpc.ServiceError).details ?? String(error));
    return 1;
  } finally {
    bridge.close();
  }
}

void main().then((code) => (process.exitCode = code));
